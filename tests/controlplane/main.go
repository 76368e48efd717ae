// Command atlas-kube is every Kubernetes program that the local cluster runs, in one binary.
//
// The name it is called by decides which one it is (`kube-apiserver`, `etcd`, `kubectl`, ...), as busybox does.
// One binary, because the programs share nine tenths of their code: it links once and lies on the disk once.
// It deliberately adds nothing to what upstream ships: every case hands over to the upstream command, but for
// `kubelet-port`, the simulated nodes' port for logs and port-forward (kubeletport.go).
package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	helmcmd "helm.sh/helm/v4/pkg/cmd"
	helmkube "helm.sh/helm/v4/pkg/kube"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectlcmd "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// The upstream commands by the name of their program; etcd and helm have entry points of another shape.
var programs = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kube-proxy":              proxy.NewProxyCommand,
	"kubectl":                 kubectlcmd.NewDefaultKubectlCommand,
	"kubelet-port":            newKubeletPortCommand,
}

func main() {
	name := filepath.Base(os.Args[0])
	switch name {
	case "etcd":
		etcdmain.Main(os.Args)
		return
	case "helm":
		os.Exit(helm())
	}
	program, known := programs[name]
	if !known {
		fmt.Fprintf(os.Stderr, "atlas-kube: called as %q; link it as etcd, helm or one of the Kubernetes programs\n", name)
		os.Exit(64)
	}
	os.Exit(cli.Run(program()))
}

// helm runs the Helm command line and returns its exit status.
func helm() int {
	// The field manager that Helm's own binary uses; the library would otherwise take ours from the binary's name.
	helmkube.ManagedFieldsManager = "helm"
	root, err := helmcmd.NewRootCmd(os.Stdout, os.Args[1:], helmcmd.SetupLogging)
	if err != nil {
		slog.Warn("helm could not start", slog.Any("error", err))
		return 1
	}
	if root.Execute() != nil {
		return 1
	}
	return 0
}
