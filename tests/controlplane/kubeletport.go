package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
)

// The simulated kubelet's HTTPS port: logs and port-forward of the pods that a node agent runs, and nothing else.
//
// It belongs to the test tool in tests/src/node_agent, which starts one per node inside the node's network
// namespace. The two meet in a folder: `NS_POD/CONTAINER.log` (the running container), `NS_POD/CONTAINER.previous.log`
// (the one before), `NS_POD/CONTAINER.running` (there while the container runs), `NS_POD/ip` (the pod's address).
// It does no exec, attach or metrics, and log lines carry no timestamps.
type kubeletPort struct {
	folder string
}

// How often a followed log is looked at for more; short enough that a reader sees lines as they come.
const followInterval = 50 * time.Millisecond

func newKubeletPortCommand() *cobra.Command {
	var listen, certificate, key, clientCA, folder string
	command := &cobra.Command{
		Use:          "kubelet-port",
		Short:        "Serve logs and port-forward of a simulated node's pods",
		SilenceUsage: true,
		RunE: func(*cobra.Command, []string) error {
			roots := x509.NewCertPool()
			pem, err := os.ReadFile(clientCA)
			if err != nil {
				return err
			}
			if !roots.AppendCertsFromPEM(pem) {
				return fmt.Errorf("--client-ca %s holds no certificate", clientCA)
			}
			server := &http.Server{
				Addr:    listen,
				Handler: (&kubeletPort{folder}).routes(),
				TLSConfig: &tls.Config{
					ClientCAs:  roots,
					ClientAuth: tls.RequireAndVerifyClientCert,
					MinVersion: tls.VersionTLS12,
				},
				// Port-forward upgrades the connection to SPDY, which HTTP/2 has no way to do.
				TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
			}
			return server.ListenAndServeTLS(certificate, key)
		},
	}
	flags := command.Flags()
	flags.StringVar(&listen, "listen", ":10250", "address to listen on")
	flags.StringVar(&certificate, "tls-cert", "", "serving certificate (PEM)")
	flags.StringVar(&key, "tls-key", "", "serving key (PEM)")
	flags.StringVar(&clientCA, "client-ca", "", "authority that client certificates must come from (PEM)")
	flags.StringVar(&folder, "dir", "", "folder with one folder a pod")
	for _, name := range []string{"tls-cert", "tls-key", "client-ca", "dir"} {
		if err := command.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
	return command
}

func (k *kubeletPort) routes() http.Handler {
	routes := http.NewServeMux()
	routes.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	routes.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", k.logs)
	routes.HandleFunc("/portForward/{namespace}/{pod}", k.portForward)
	routes.HandleFunc("/portForward/{namespace}/{pod}/{uid}", k.portForward)
	return routes
}

// podFolder refuses names that would lead out of the folder.
func (k *kubeletPort) podFolder(r *http.Request) (string, error) {
	namespace, pod := r.PathValue("namespace"), r.PathValue("pod")
	for _, part := range []string{namespace, pod, r.PathValue("container")} {
		if strings.ContainsAny(part, "/\\") || strings.HasPrefix(part, ".") {
			return "", fmt.Errorf("bad name %q in the path", part)
		}
	}
	return filepath.Join(k.folder, namespace+"_"+pod), nil
}

func (k *kubeletPort) logs(w http.ResponseWriter, r *http.Request) {
	folder, err := k.podFolder(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	query, container := r.URL.Query(), r.PathValue("container")
	name := container + ".log"
	follow := query.Get("follow") == "true"
	if query.Get("previous") == "true" {
		name, follow = container+".previous.log", false
	}
	file, err := os.Open(filepath.Join(folder, name))
	if errors.Is(err, os.ErrNotExist) {
		http.Error(w, fmt.Sprintf("container %q has no log here: it has not been started", container), http.StatusNotFound)
		return
	} else if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer file.Close()
	if lines := query.Get("tailLines"); lines != "" {
		count, err := strconv.Atoi(lines)
		if err != nil || count < 0 {
			http.Error(w, fmt.Sprintf("tailLines %q is not a number of lines", lines), http.StatusBadRequest)
			return
		}
		if err := seekToLastLines(file, count); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	var out io.Writer = w
	if limit, err := strconv.ParseInt(query.Get("limitBytes"), 10, 64); err == nil && limit >= 0 {
		if _, err := io.CopyN(out, file, limit); err != nil && !errors.Is(err, io.EOF) {
			return
		}
		return
	}
	if _, err := io.Copy(out, file); err != nil || !follow {
		return
	}
	k.follow(w, r, file, filepath.Join(folder, container+".running"))
}

// follow copies what is appended until the container ends or the reader goes away.
func (k *kubeletPort) follow(w http.ResponseWriter, r *http.Request, file *os.File, running string) {
	flusher, _ := w.(http.Flusher)
	ticker := time.NewTicker(followInterval)
	defer ticker.Stop()
	for {
		// Looked at before the copy: what the container wrote before it ended is then still copied.
		_, err := os.Stat(running)
		ended := errors.Is(err, os.ErrNotExist)
		if _, err := io.Copy(w, file); err != nil || ended {
			return
		}
		if flusher != nil {
			flusher.Flush()
		}
		select {
		case <-r.Context().Done():
			return
		case <-ticker.C:
		}
	}
}

// seekToLastLines moves to the start of the last `count` lines, reading backwards in blocks.
func seekToLastLines(file *os.File, count int) error {
	end, err := file.Seek(0, io.SeekEnd)
	if err != nil || count == 0 {
		return err
	}
	block := make([]byte, 64*1024)
	newlines := 0
	for position := end; position > 0; {
		size := min(int64(len(block)), position)
		position -= size
		if _, err := file.ReadAt(block[:size], position); err != nil {
			return err
		}
		for i := size - 1; i >= 0; i-- {
			// The newline that ends the last line does not begin another one.
			if block[i] != '\n' || position+i == end-1 {
				continue
			}
			if newlines++; newlines == count {
				_, err := file.Seek(position+i+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = file.Seek(0, io.SeekStart)
	return err
}

func (k *kubeletPort) portForward(w http.ResponseWriter, r *http.Request) {
	folder, err := k.podFolder(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	address, err := os.ReadFile(filepath.Join(folder, "ip"))
	if err != nil {
		http.Error(w, fmt.Sprintf("pod %s does not run here", r.PathValue("pod")), http.StatusNotFound)
		return
	}
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	forwarder := podDialer{strings.TrimSpace(string(address))}
	portforward.ServePortForward(w, r, forwarder, r.PathValue("pod"), r.PathValue("uid"), options,
		4*time.Hour, 30*time.Second, portforward.SupportedProtocols)
}

// podDialer forwards to the pod's own address; a server that listens on the pod's loopback alone is not reached.
type podDialer struct {
	address string
}

func (d podDialer) PortForward(ctx context.Context, _ string, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(d.address, strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	defer connection.Close()
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(stream, connection)
		done <- err
	}()
	go func() {
		// The client has sent everything; its answer may still be on the way.
		_, _ = io.Copy(connection, stream)
		if tcp, ok := connection.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
	}()
	return <-done
}
