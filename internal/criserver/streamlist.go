package criserver

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A streamed list is the list, in pieces: what one message cannot hold, several can.
// All that it tells is of one moment, that of the first piece.

// pieceSize is what a message of a streamed list holds; one item may be larger.
const pieceSize = 1 << 20

// pieces sends a list. An empty one is no message at all.
func pieces[T proto.Message](items []T, send func([]T) error) error {
	for len(items) > 0 {
		n, size := 1, proto.Size(items[0])
		for n < len(items) {
			if size += proto.Size(items[n]); size > pieceSize {
				break
			}
			n++
		}
		if err := send(items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// inPieces answers a streamed list by the call that lists, split.
func inPieces[Req, Resp, Piece any, T proto.Message](out grpc.ServerStreamingServer[Piece], list func(context.Context, *Req) (*Resp, error),
	req *Req, items func(*Resp) []T, piece func([]T) *Piece,
) error {
	resp, err := list(out.Context(), req)
	if err != nil {
		return err
	}
	return pieces(items(resp), func(part []T) error { return out.Send(piece(part)) })
}

func (s *runtimeService) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	return inPieces(out, s.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{Filter: r.GetFilter()},
		(*runtimeapi.ListPodSandboxResponse).GetItems,
		func(part []*runtimeapi.PodSandbox) *runtimeapi.StreamPodSandboxesResponse {
			return &runtimeapi.StreamPodSandboxesResponse{PodSandboxes: part}
		})
}

func (s *runtimeService) StreamContainers(r *runtimeapi.StreamContainersRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	return inPieces(out, s.ListContainers, &runtimeapi.ListContainersRequest{Filter: r.GetFilter()},
		(*runtimeapi.ListContainersResponse).GetContainers,
		func(part []*runtimeapi.Container) *runtimeapi.StreamContainersResponse {
			return &runtimeapi.StreamContainersResponse{Containers: part}
		})
}

func (s *runtimeService) StreamContainerStats(r *runtimeapi.StreamContainerStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	return inPieces(out, s.ListContainerStats, &runtimeapi.ListContainerStatsRequest{Filter: r.GetFilter()},
		(*runtimeapi.ListContainerStatsResponse).GetStats,
		func(part []*runtimeapi.ContainerStats) *runtimeapi.StreamContainerStatsResponse {
			return &runtimeapi.StreamContainerStatsResponse{ContainerStats: part}
		})
}

func (s *runtimeService) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	return inPieces(out, s.ListPodSandboxStats, &runtimeapi.ListPodSandboxStatsRequest{Filter: r.GetFilter()},
		(*runtimeapi.ListPodSandboxStatsResponse).GetStats,
		func(part []*runtimeapi.PodSandboxStats) *runtimeapi.StreamPodSandboxStatsResponse {
			return &runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: part}
		})
}

func (s *runtimeService) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	return inPieces(out, s.ListPodSandboxMetrics, &runtimeapi.ListPodSandboxMetricsRequest{},
		(*runtimeapi.ListPodSandboxMetricsResponse).GetPodMetrics,
		func(part []*runtimeapi.PodSandboxMetrics) *runtimeapi.StreamPodSandboxMetricsResponse {
			return &runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part}
		})
}

func (s *imageService) StreamImages(r *runtimeapi.StreamImagesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	return inPieces(out, s.ListImages, &runtimeapi.ListImagesRequest{Filter: r.GetFilter()},
		(*runtimeapi.ListImagesResponse).GetImages,
		func(part []*runtimeapi.Image) *runtimeapi.StreamImagesResponse {
			return &runtimeapi.StreamImagesResponse{Images: part}
		})
}
