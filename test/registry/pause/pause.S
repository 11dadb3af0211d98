# The smallest pause container: reaps children, ends at SIGTERM or SIGINT.
# It stands in for registry.k8s.io/pause when another engine is measured, so it
# must cost that engine no more memory than the real one. To make it again:
#   as -o pause.o pause.S && ld -N -s -z noseparate-code --build-id=none -o pause.elf pause.o
.globl _start
_start:
	mov $14, %eax		# rt_sigprocmask(SIG_BLOCK, set, NULL, 8)
	xor %edi, %edi
	mov $set, %esi
	xor %edx, %edx
	mov $8, %r10d
	syscall
wait:
	mov $128, %eax		# rt_sigtimedwait(set, NULL, NULL, 8)
	mov $set, %edi
	xor %esi, %esi
	xor %edx, %edx
	mov $8, %r10d
	syscall
	cmp $17, %eax		# SIGCHLD
	je reap
	test %eax, %eax
	js wait
	mov $60, %eax		# exit(0)
	xor %edi, %edi
	syscall
reap:
	mov $61, %eax		# wait4(-1, NULL, WNOHANG, NULL)
	mov $-1, %rdi
	xor %esi, %esi
	mov $1, %edx
	xor %r10d, %r10d
	syscall
	test %eax, %eax
	jg reap
	jmp wait
	.balign 8
set:	.quad (1<<14)|(1<<1)|(1<<16)
