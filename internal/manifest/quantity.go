package manifest

import (
	"errors"
	"math"
	"math/big"
	"strings"
)

// Quantity is a Kubernetes quantity: 64Mi, 1.5, 500m, 1e3. It is kept exactly.
type Quantity struct {
	text  string
	value big.Rat
}

// ParseQuantity reads a quantity that is not negative.
func ParseQuantity(s string) (Quantity, error) {
	var q Quantity
	err := q.parse(s)
	return q, err
}

// suffixes are Kubernetes' own: powers of 1024, powers of 1000, and the small ones.
var suffixes = []struct {
	name string
	base int64
	exp  int
}{
	{"Ki", 1024, 1},
	{"Mi", 1024, 2},
	{"Gi", 1024, 3},
	{"Ti", 1024, 4},
	{"Pi", 1024, 5},
	{"Ei", 1024, 6},
	{"n", 1000, -3},
	{"u", 1000, -2},
	{"m", 1000, -1},
	{"k", 1000, 1},
	{"M", 1000, 2},
	{"G", 1000, 3},
	{"T", 1000, 4},
	{"P", 1000, 5},
	{"E", 1000, 6},
}

var errQuantity = errors.New("want a quantity such as 64Mi, 500m or 1.5")

func (q *Quantity) parse(s string) error {
	number, factor := s, big.NewRat(1, 1)
	for _, suffix := range suffixes {
		if n, ok := strings.CutSuffix(s, suffix.name); ok {
			number, factor = n, power(suffix.base, suffix.exp)
			break
		}
	}
	mantissa, exponent := number, 0
	if i := strings.IndexAny(number, "eE"); i >= 0 && number == s {
		var ok bool
		if exponent, ok = smallInt(number[i+1:]); !ok {
			return errQuantity
		}
		mantissa, factor = number[:i], power(10, exponent)
	}
	if !isDecimal(mantissa) {
		return errQuantity
	}
	r, ok := new(big.Rat).SetString(mantissa)
	if !ok {
		return errQuantity
	}
	q.text = s
	q.value.Mul(r, factor)
	return nil
}

func power(base int64, exp int) *big.Rat {
	i := new(big.Int).Exp(big.NewInt(base), big.NewInt(int64(max(exp, -exp))), nil)
	if exp < 0 {
		return new(big.Rat).SetFrac(big.NewInt(1), i)
	}
	return new(big.Rat).SetInt(i)
}

// smallInt reads an exponent; none of more than two digits makes sense.
func smallInt(s string) (int, bool) {
	sign := 1
	if rest, ok := strings.CutPrefix(s, "-"); ok {
		s, sign = rest, -1
	} else {
		s = strings.TrimPrefix(s, "+")
	}
	if s == "" || len(s) > 2 {
		return 0, false
	}
	n := 0
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return sign * n, true
}

func isDecimal(s string) bool {
	s = strings.TrimPrefix(s, "+")
	digits, dots := 0, 0
	for _, c := range s {
		switch {
		case c >= '0' && c <= '9':
			digits++
		case c == '.':
			dots++
		default:
			return false
		}
	}
	return digits > 0 && digits <= 40 && dots <= 1
}

func (q Quantity) String() string { return q.text }

// Value is the quantity rounded up to a whole number, as Kubernetes does.
func (q Quantity) Value() int64 { return roundUp(&q.value) }

// Whole tells whether the quantity is a whole number: 64m bytes are none, and meant
// are 64M.
func (q Quantity) Whole() bool { return q.value.IsInt() }

// MilliValue is the quantity in thousandths, rounded up.
func (q Quantity) MilliValue() int64 {
	return roundUp(new(big.Rat).Mul(&q.value, big.NewRat(1000, 1)))
}

func roundUp(r *big.Rat) int64 {
	n, rest := new(big.Int).QuoRem(r.Num(), r.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		n.Add(n, big.NewInt(1))
	}
	if !n.IsInt64() {
		return math.MaxInt64
	}
	return n.Int64()
}
