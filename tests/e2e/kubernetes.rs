//! deploy/kubernetes: installing rvm on nodes and removing it, with directories as nodes. No
//! is started.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rvm_tests::command::{Finished, finish};

/// Replaces nsenter: writes the command to a file, and prints the answer from another file.
const ENTER: &str = r#"#!/bin/bash
echo "$*" >>"$FAKE/calls"
case "$*" in
"systemctl is-active --quiet crio") [[ -e $FAKE/is-crio ]] ;;
"systemctl is-active --quiet "*) [[ ! -e $FAKE/is-down ]] ;;
"systemctl restart "*) [[ ! -e $FAKE/is-down ]] ;;
"containerd --version") cat "$FAKE/version" ;;
"containerd --config "*) [[ ! -e $FAKE/refuses ]] && test -e "$RVM_NODE_ROOT$3" ;;
esac
"#;

const CURL: &str = "#!/bin/bash\necho \"$*\" >>\"$FAKE/asked\"\n";

/// A node, and an image of rvm.
struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        let node = Self(tempfile::tempdir().unwrap());
        for dir in ["node/etc", "image/bin", "fake", "proc"] {
            fs::create_dir_all(node.path(dir)).unwrap();
        }
        for name in ["rvm", "containerd-shim-rvm-v2"] {
            node.program(&format!("image/bin/{name}"), "rvm");
        }
        node.write("fake/token", "secret");
        node.program("fake/enter", ENTER);
        node.program("fake/curl", CURL);
        node.write(
            "fake/version",
            "containerd github.com/containerd/containerd 1.7.24~ds1\n",
        );
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn program(&self, name: &str, text: &str) {
        self.write(name, text);
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, verb: &str) -> Command {
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/image/rvm-node");
        let fake = self.path("fake");
        let mut command = Command::new(script);
        command
            .arg(verb)
            .env("RVM_NODE_ROOT", self.path("node"))
            .env("RVM_NODE_SOURCE", self.path("image"))
            .env("RVM_NODE_CONFIG", self.path("config.toml"))
            .env("RVM_NODE_ENTER", fake.join("enter"))
            .env("RVM_NODE_PROC", self.path("proc"))
            .env("RVM_NODE_PAUSE", "0")
            .env("RVM_NODE_CHECKS", "1")
            .env("RVM_NODE_ACCOUNT", &fake)
            .env("NODE_NAME", "worker-1")
            .env("PATH", format!("{}:/usr/bin:/bin", fake.display()))
            .env("FAKE", fake);
        command
    }

    fn run(&self, verb: &str) -> Finished {
        finish(self.command(verb))
    }

    fn ok(&self, verb: &str) {
        let finished = self.run(verb);
        assert_eq!(finished.code, 0, "{verb}: {}", finished.stderr);
    }

    /// All files of the node: type, mode, content.
    fn tree(&self) -> BTreeMap<PathBuf, (u32, String)> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![self.path("node")];
        while let Some(path) = waiting.pop() {
            let status = path.symlink_metadata().unwrap();
            let content = match status.is_dir() {
                true => {
                    waiting.extend(
                        fs::read_dir(&path)
                            .unwrap()
                            .map(|entry| entry.unwrap().path()),
                    );
                    String::new()
                }
                false => fs::read_to_string(&path).unwrap(),
            };
            found.insert(path, (status.mode(), content));
        }
        found
    }

    fn restarts(&self) -> usize {
        self.read("fake/calls").matches("systemctl restart").count()
    }
}

const VERSION_TWO: &str = "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  \
                           default_runtime_name = \"runc\"\n";
const VERSION_THREE: &str = "version = 3\n[plugins.'io.containerd.cri.v1.runtime']\n";

#[test]
fn what_install_does_remove_undoes_to_the_last_byte() {
    let imports = "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n";
    let config = "node/etc/containerd/config.toml";
    let drop_in = "node/etc/containerd/conf.d/rvm.toml";
    let section = |plugin| format!("[plugins.\"{plugin}\".containerd.runtimes.rvm]");
    let (two, three) = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime");
    for (before, place, plugin) in [
        (Some(VERSION_TWO), config, two),
        (Some(VERSION_TWO.trim_end()), config, two),
        (Some(VERSION_THREE), config, three),
        (Some(imports), drop_in, three),
        (None, config, two),
    ] {
        let node = Node::new();
        if let Some(text) = before {
            node.write(config, text);
            fs::set_permissions(node.path(config), fs::Permissions::from_mode(0o600)).unwrap();
        }
        fs::create_dir(node.path("node/run")).unwrap();
        let clean = node.tree();
        node.ok("install");
        let installed = node.tree();
        let text = node.read(place);
        assert!(text.contains(&section(plugin)), "{before:?}: {text}");
        assert!(text.contains("version = "), "{text}");
        assert_eq!(node.read("node/opt/rvm/bin/rvm"), "rvm");
        assert_eq!(node.restarts(), 1);
        node.ok("install");
        assert_eq!(node.tree(), installed, "twice is once");
        assert_eq!(node.restarts(), 1, "and no reason for a restart");
        node.write("node/run/rvm-templates/0123456789abcdef/key", "{}");
        node.ok("remove");
        assert_eq!(node.tree(), clean, "{before:?}");
        assert_eq!(node.restarts(), 2);
        node.ok("remove");
        assert_eq!(node.tree(), clean, "{before:?}");
        assert_eq!(node.restarts(), 2);
    }
}

#[test]
fn what_others_write_meanwhile_stays() {
    let node = Node::new();
    let config = "node/etc/containerd/config.toml";
    node.write(config, VERSION_TWO);
    node.ok("install");
    let installed = node.read(config);
    node.write(config, &format!("# more\n{installed}# and more\n"));
    node.write("node/opt/other", "");
    node.ok("remove");
    assert_eq!(
        node.read(config),
        format!("# more\n{VERSION_TWO}# and more\n")
    );
    assert!(node.path("node/opt/other").exists() && !node.path("node/opt/rvm").exists());
}

#[test]
fn cri_o_gets_a_file_of_its_own() {
    let node = Node::new();
    node.write("fake/is-crio", "");
    let clean = node.tree();
    node.ok("install");
    let text = node.read("node/etc/crio/crio.conf.d/99-rvm.conf");
    assert!(text.contains("[crio.runtime.runtimes.rvm]\nruntime_path = \"/opt/rvm/bin/rvm\""));
    assert!(
        text.contains("[crio.runtime]\ndrop_infra_ctr = false\n"),
        "{text}"
    );
    assert!(node.read("fake/calls").contains("systemctl restart crio"));
    node.ok("remove");
    assert_eq!(node.tree(), clean);
}

#[test]
fn an_engine_that_does_not_take_it_gets_its_configuration_back() {
    for (fault, restarts) in [("fake/refuses", 0), ("fake/is-down", 2)] {
        let node = Node::new();
        let config = "node/etc/containerd/config.toml";
        node.write(config, VERSION_THREE);
        node.write(fault, "");
        let finished = node.run("install");
        assert_eq!(finished.code, 1, "{fault}");
        assert!(
            finished.stderr.contains("it is as it was"),
            "{}",
            finished.stderr
        );
        assert_eq!(node.read(config), VERSION_THREE);
        let left = fs::read_dir(node.path("node/etc/containerd")).unwrap();
        assert_eq!(left.count(), 1, "nothing lies about");
        assert_eq!(node.restarts(), restarts);
        assert_eq!(node.read("fake/asked"), "", "and no pod is sent there");
    }
    let node = Node::new();
    node.write("node/etc/containerd/config.toml", "[plugins.cri]\n");
    assert!(node.run("install").stderr.contains("is of version 1"));
}

#[test]
fn pods_find_the_node_by_its_label_and_rvm_stays_while_they_run() {
    let node = Node::new();
    node.write("node/etc/containerd/config.toml", VERSION_TWO);
    node.ok("install");
    let call = node.read("fake/asked");
    assert!(
        call.contains(r#"{"metadata":{"labels":{"io.rvm/installed":"true"}}}"#),
        "{call}"
    );
    assert!(
        call.trim_end().ends_with("/api/v1/nodes/worker-1"),
        "{call}"
    );

    fs::create_dir(node.path("proc/77")).unwrap();
    symlink(
        "/opt/rvm/bin/containerd-shim-rvm-v2",
        node.path("proc/77/exe"),
    )
    .unwrap();
    let mut removal = node.command("remove");
    removal.env("RVM_NODE_PAUSE", "0.1").stderr(Stdio::null());
    let mut removal = removal.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(removal.try_wait().unwrap().is_none(), "it waits");
    assert!(
        node.read("fake/asked")
            .contains(r#""io.rvm/installed":null"#)
    );
    assert!(node.path("node/opt/rvm/bin/rvm").exists());
    assert_eq!(node.restarts(), 1);
    fs::remove_dir_all(node.path("proc/77")).unwrap();
    assert!(removal.wait().unwrap().success());
    assert!(!node.path("node/opt").exists());
}

#[test]
fn an_update_replaces_the_files_and_needs_no_restart() {
    let node = Node::new();
    node.write("node/etc/containerd/config.toml", VERSION_TWO);
    let clean = node.tree();
    node.ok("install");
    node.program("image/bin/rvm", "newer");
    node.ok("install");
    assert_eq!(node.read("node/opt/rvm/bin/rvm"), "newer");
    assert_eq!(node.restarts(), 1);
    node.ok("remove");
    assert_eq!(node.tree(), clean);
}

#[test]
fn a_configuration_of_rvm_is_put_there_unless_the_node_has_one() {
    let node = Node::new();
    node.write("node/etc/containerd/config.toml", VERSION_TWO);
    let clean = node.tree();
    node.write("config.toml", "vcpus = 2\n");
    node.ok("install");
    assert!(
        node.read("node/etc/rvm/config.toml")
            .ends_with("\nvcpus = 2\n")
    );
    node.ok("remove");
    assert_eq!(node.tree(), clean);
    node.write("node/etc/rvm/config.toml", "vcpus = 1\n");
    let clean = node.tree();
    node.ok("install");
    assert_eq!(node.read("node/etc/rvm/config.toml"), "vcpus = 1\n");
    node.ok("remove");
    assert_eq!(node.tree(), clean);
}
