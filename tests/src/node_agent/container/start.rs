//! How a container comes to run: its image, command, mounts, user and files.
//!
//! What cannot be had is told in a kubelet's words; waiting and trying again is the caller's.

use std::path::PathBuf;

use kube::ResourceExt as _;
use kube::runtime::events::EventType;

use super::super::environment::expand;
use super::super::image_map::{Image, engine_on_cpu};
use super::super::inputs::collect_environment;
use super::super::process::Process;
use super::super::sandbox::{Identity, Mount, Sandbox};
use super::{ContainerRun, NotStarted};

impl ContainerRun<'_> {
    /// Makes the sandbox and starts the program in it.
    pub(super) async fn start(&self) -> Result<Process, NotStarted> {
        let reference = self.container.image.clone().unwrap_or_default();
        let image = self.resolve_image(&reference)?;
        self.event(
            EventType::Normal,
            "Pulled",
            format!("Container image {reference:?} already present on machine"),
        );
        let config_error = |message| NotStarted { reason: "CreateContainerConfigError", message };
        let variables = collect_environment(self.machine, self.pod, self.container, self.net.ip)
            .await
            .map_err(|error| config_error(error.to_string()))?;
        let identity = self.identity(image).map_err(config_error)?;
        let sandbox = Sandbox {
            folder: self.own_folder(),
            hostname: self.pod.name_any(),
            mounts: self.mounts(image, &variables).map_err(config_error)?,
            identity,
            read_only_root: self
                .container
                .security_context
                .as_ref()
                .is_some_and(|context| context.read_only_root_filesystem == Some(true)),
            working_dir: self.container.working_dir.clone().unwrap_or_else(|| "/".into()),
            command: self.command(image, &variables),
            environment: variables,
        };
        let failed = |error: std::io::Error| NotStarted {
            reason: "CreateContainerError",
            message: format!("cannot write below {}: {error}", self.folder.display()),
        };
        let script = self.lay_files(&sandbox).map_err(failed)?;
        let process = Process::start(&script, &self.net.netns_path, &self.log("log"))
            .await
            .map_err(|error| NotStarted { reason: "CreateContainerError", message: error.to_string() })?;
        std::fs::write(self.running_file(), "").map_err(failed)?;
        let id = format!("process://{:032x}", rand::random::<u128>());
        self.update(|view| view.container_id = Some(id));
        Ok(process)
    }

    fn resolve_image(&self, reference: &str) -> Result<&Image, NotStarted> {
        let images = &self.machine.options.images;
        let unknown = |message| NotStarted { reason: "ErrImagePull", message };
        let image = images.resolve(reference).ok_or_else(|| {
            unknown(format!(
                "failed to pull image {reference:?}: a simulated node pulls nothing and knows only {}",
                images.names()
            ))
        })?;
        if image.binary.is_file() {
            return Ok(image);
        }
        Err(unknown(format!(
            "failed to pull image {reference:?}: its program {} is not there; build it first",
            image.binary.display()
        )))
    }

    fn command(&self, image: &Image, variables: &[(String, String)]) -> Vec<String> {
        let expanded = |words: &Option<Vec<String>>| -> Vec<String> {
            words.iter().flatten().map(|word| expand(word, variables)).collect()
        };
        let mut command = expanded(&self.container.command);
        if command.is_empty() {
            command.push(image.entrypoint.clone());
        }
        let arguments = expanded(&self.container.args);
        command.extend(if image.needs_card { engine_on_cpu(&arguments) } else { arguments });
        command
    }

    fn mounts(&self, image: &Image, variables: &[(String, String)]) -> Result<Vec<Mount>, String> {
        let mut mounts =
            vec![Mount { source: image.binary.clone(), target: image.entrypoint.clone(), read_only: true }];
        for mount in self.container.volume_mounts.iter().flatten() {
            let folder = self.volumes.folders.get(&mount.name);
            let folder = folder.ok_or_else(|| format!("volume {:?} is not one of the pod's", mount.name))?;
            let sub_path =
                mount.sub_path_expr.as_ref().map(|path| expand(path, variables)).or(mount.sub_path.clone());
            let source = sub_path.map_or_else(|| folder.clone(), |path| folder.join(path));
            mounts.push(Mount {
                source,
                target: mount.mount_path.clone(),
                read_only: mount.read_only == Some(true),
            });
        }
        mounts.push(Mount {
            source: self.message_file(),
            target: self
                .container
                .termination_message_path
                .clone()
                .unwrap_or_else(|| "/dev/termination-log".into()),
            read_only: false,
        });
        Ok(mounts)
    }

    fn identity(&self, image: &Image) -> Result<Identity, String> {
        let pod = self.pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
        let own = self.container.security_context.clone().unwrap_or_default();
        let id = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok());
        let user = id(own.run_as_user.or(pod.run_as_user)).unwrap_or(image.user);
        if user == 0 && own.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
            return Err("container has runAsNonRoot and image will run as root".into());
        }
        let groups = pod.supplemental_groups.into_iter().flatten().chain(pod.fs_group);
        Ok(Identity {
            user,
            group: id(own.run_as_group.or(pod.run_as_group)).unwrap_or(0),
            groups: groups.filter_map(|group| id(Some(group))).collect(),
            no_new_privileges: own.allow_privilege_escalation == Some(false),
        })
    }

    /// Writes the files of one run and gives back its script.
    fn lay_files(&self, sandbox: &Sandbox) -> std::io::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::create_dir_all(sandbox.folder.join("layer"))?;
        let (log, previous) = (self.log("log"), self.log("previous.log"));
        if log.exists() {
            std::fs::rename(&log, previous)?;
        }
        std::fs::write(&log, "")?;
        std::fs::write(self.message_file(), "")?;
        std::fs::set_permissions(self.message_file(), std::fs::Permissions::from_mode(0o666))?;
        let options = &self.machine.options;
        let (namespace, domain) = (self.pod.namespace().unwrap_or_default(), &options.cluster_domain);
        std::fs::write(
            sandbox.folder.join("resolv.conf"),
            format!(
                "nameserver {}\nsearch {namespace}.svc.{domain} svc.{domain} {domain}\noptions ndots:5\n",
                options.dns
            ),
        )?;
        std::fs::write(
            sandbox.folder.join("hosts"),
            format!("127.0.0.1 localhost\n::1 localhost\n{} {}\n", self.net.ip, sandbox.hostname),
        )?;
        let script = sandbox.folder.join("run.sh");
        std::fs::write(&script, sandbox.script())?;
        Ok(script)
    }
}
