//! Wrong input: rvm fails with one line that names the file and the field or the path, and leaves
//! nothing behind.

#[path = "bad_input/guest.rs"]
mod guest;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use rvm_tests::{Bundle, Finished, Rvm, command};
use serde_json::{Value, json};

/// Asserts that a command failed with one line and left nothing behind; returns the line.
#[track_caller]
fn line(rvm: &Rvm, finished: &Finished) -> String {
    assert_eq!(
        (finished.code, finished.stdout.as_str()),
        (1, ""),
        "{finished:?}"
    );
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    assert!(finished.stderr.starts_with("rvm "), "{}", finished.stderr);
    let parts: Vec<&str> = finished.stderr.trim_end().split(": ").collect();
    let unique: HashSet<&&str> = parts.iter().collect();
    assert_eq!(
        parts.len(),
        unique.len(),
        "says something twice: {}",
        finished.stderr
    );
    rvm.assert_nothing_left();
    finished.stderr.clone()
}

/// Asserts that a text contains all of these.
#[track_caller]
fn says(text: &str, expected: &[&str]) {
    for part in expected {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// Tries `create` and `run` of a bundle, which must both fail; returns both lines.
fn refusals(rvm: &Rvm, bundle: &Path) -> [String; 2] {
    let pid_file = rvm.path("pid");
    ["create", "run"].map(|verb| {
        let mut command = rvm.command(&[verb, "--pid-file"]);
        command
            .arg(&pid_file)
            .arg("--bundle")
            .arg(bundle)
            .arg("box");
        let refusal = line(rvm, &command::finish(command));
        says(&refusal, &[&format!("rvm {verb} failed: ")]);
        assert!(!pid_file.exists());
        refusal
    })
}

/// Asserts that a bundle with a changed configuration is refused.
fn refused_with(change: impl FnOnce(&mut Value), expected: &[&str]) {
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["true"]).with(change);
    for refusal in refusals(&rvm, bundle.write()) {
        says(&refusal, expected);
    }
}

#[test]
fn a_bundle_that_is_not_there_is_named() {
    let rvm = Rvm::new();
    for refusal in refusals(&rvm, Path::new("/nonexistent/bundle")) {
        says(&refusal, &["/nonexistent/bundle", "No such file"]);
    }
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["true"]);
    let file = bundle.path().join("config.json");
    for refusal in refusals(&rvm, bundle.path()) {
        says(
            &refusal,
            &[
                "JSON specification file",
                file.to_str().unwrap(),
                "not found",
            ],
        );
    }
}

#[test]
fn json_cut_short_is_named_with_the_place() {
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["true"]);
    let file = bundle.write().join("config.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, &text[..text.len() / 2]).unwrap();
    for refusal in refusals(&rvm, bundle.path()) {
        says(&refusal, &[file.to_str().unwrap(), "EOF", "line"]);
    }
}

#[test]
fn wrong_types_name_the_field() {
    for (pointer, value, field) in [
        ("/process/args", json!("true"), "process.args"),
        ("/process/user/uid", json!("root"), "process.user.uid"),
        ("/root/readonly", json!("yes"), "root.readonly"),
        ("/hostname", json!(7), "hostname"),
        ("/mounts/0", json!("/proc"), "mounts[0]"),
        (
            "/linux/namespaces/0/type",
            json!("moon"),
            "linux.namespaces[0].type",
        ),
        (
            "/process/rlimits/0/type",
            json!("RLIMIT_MOON"),
            "process.rlimits[0].type",
        ),
        (
            "/process/capabilities/bounding",
            json!([7]),
            "process.capabilities.bounding",
        ),
        (
            "/linux/resources/memory",
            json!({ "limit": "1g" }),
            "linux.resources.memory.limit",
        ),
    ] {
        refused_with(
            |config| set(config, pointer, value),
            &["/config.json: ", field],
        );
    }
}

#[test]
fn wrong_values_name_the_field() {
    for (pointer, value, field) in [
        ("/ociVersion", json!("2.0.0"), "ociVersion 2.0.0 is unknown"),
        (
            "/ociVersion",
            json!("banana"),
            "ociVersion \"banana\" is no version",
        ),
        ("/process/args", json!([]), "process.args is empty"),
        (
            "/process/cwd",
            json!("tmp"),
            "process.cwd is not an absolute path",
        ),
        (
            "/process/env",
            json!(["A=\0"]),
            "process.env[0] contains a zero byte",
        ),
        ("/process", json!(null), "process is missing"),
        ("/root", json!(null), "root is missing"),
        (
            "/linux/resources/cpu",
            json!({ "cpus": "3-1" }),
            "linux.resources.cpu.cpus",
        ),
        (
            "/linux/resources/memory",
            json!({ "limit": 4_i64 << 40 }),
            "linux.resources.memory.limit",
        ),
    ] {
        refused_with(
            |config| set(config, pointer, value),
            &["config.json: ", field],
        );
    }
}

#[test]
fn fields_that_cannot_be_honoured_are_refused_by_name() {
    for (pointer, value, field) in [
        ("/windows", json!({ "layerFolders": [] }), "windows"),
        (
            "/vm",
            json!({ "kernel": { "path": "/boot/vmlinuz" } }),
            "vm",
        ),
        (
            "/linux/namespaces/0",
            json!({ "type": "pid", "path": "/proc/1/ns/pid" }),
            "linux.namespaces[0].path",
        ),
    ] {
        refused_with(
            |config| set(config, pointer, value),
            &["/config.json: ", field],
        );
    }
}

fn set(config: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match config.pointer_mut(parent).unwrap() {
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
        parent => parent[key] = value,
    }
}

#[test]
fn a_root_file_system_that_is_none_is_named() {
    for (path, reason) in [
        ("nowhere", "No such file"),
        ("config.json", "not a directory"),
    ] {
        let expected = ["invalid rootfs: ", &format!("/{path}"), reason];
        refused_with(|config| config["root"]["path"] = path.into(), &expected);
    }
}

#[test]
fn the_source_of_a_mount_that_is_not_there_is_named() {
    let mount = json!({
        "destination": "/data", "type": "bind", "source": "/nonexistent/data", "options": ["bind"],
    });
    let add = |config: &mut Value| config["mounts"].as_array_mut().unwrap().insert(1, mount);
    let expected = [
        "config.json: mounts[1].source /nonexistent/data",
        "No such file",
    ];
    refused_with(add, &expected);
}

#[test]
fn ids_that_are_none_are_refused_by_every_verb() {
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["true"]);
    let dir = bundle.write().to_str().unwrap();
    let long = "x".repeat(300);
    for id in ["a/b", "../a", "..", "", "a b", &long] {
        for before in [
            &["create", "--bundle", dir][..],
            &["run", "--bundle", dir],
            &["start"],
            &["state"],
            &["kill"],
            &["delete"],
            &["delete", "--force"],
            &["fork", "--bundle", dir, "box"],
        ] {
            let refusal = line(&rvm, &rvm.call(&[before, &[id]].concat()));
            says(
                &refusal,
                &["invalid container ID format", &format!("{id:?}")],
            );
        }
    }
}

#[test]
fn a_container_that_is_not_there_is_named() {
    let rvm = Rvm::new();
    for verb in ["start", "state", "kill", "delete"] {
        let refusal = line(&rvm, &rvm.call(&[verb, "ghost"]));
        says(&refusal, &["container does not exist", "ghost"]);
    }
    assert_eq!(rvm.call(&["delete", "--force", "ghost"]).code, 0);
}

#[test]
fn an_unknown_signal_is_named() {
    let rvm = Rvm::new();
    says(
        &line(&rvm, &rvm.call(&["kill", "box", "SIGMOON"])),
        &["unknown signal \"SIGMOON\""],
    );
}

#[test]
fn what_has_stopped_cannot_be_killed_started_or_made_again() {
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["true"]);
    let dir = bundle.write().to_str().unwrap();
    assert_eq!(rvm.call(&["run", "--keep", "--bundle", dir, "box"]).code, 0);
    for (args, expected) in [
        (&["kill", "box"][..], "container not running"),
        (
            &["start", "box"],
            "cannot start a container that has stopped",
        ),
        (
            &["create", "--bundle", dir, "box"],
            "container with given ID already exists: box",
        ),
        (
            &["run", "--bundle", dir, "box"],
            "container with given ID already exists: box",
        ),
    ] {
        let finished = rvm.call(args);
        assert_eq!(
            (finished.code, finished.stderr.lines().count()),
            (1, 1),
            "{finished:?}"
        );
        says(&finished.stderr, &[expected]);
        assert_eq!(rvm.status("box"), "stopped");
    }
    rvm.ok(&["delete", "box"]);
}

/// rvm's own configuration.
mod configuration {
    use super::*;

    fn refused(rvm: &Rvm, expected: &[&str]) {
        let bundle = Bundle::new(&["true"]);
        for refusal in refusals(rvm, bundle.write()) {
            says(&refusal, expected);
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let rvm = Rvm::new();
        fs::remove_file(rvm.path("config.toml")).unwrap();
        refused(&rvm, &["/config.toml", "No such file"]);
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_named() {
        for (text, field) in [
            ("kernal = \"/boot/vmlinux\"", "kernal"),
            ("engine = \"xen\"", "engine"),
            ("memory_mib = 0", "memory_mib must be at least 1"),
            ("vcpus = \"two\"", "line 1: vcpus: "),
        ] {
            refused(&Rvm::new().configured(text), &["/config.toml: ", field]);
        }
    }

    #[test]
    fn files_that_are_not_there_are_named_with_their_key() {
        for key in ["kernel", "initramfs", "vmm"] {
            let rvm = Rvm::new().configured(&format!("{key} = \"/nonexistent/{key}\""));
            let path = format!("/nonexistent/{key}");
            refused(
                &rvm,
                &[
                    &path,
                    &format!("{key} in rvm's configuration"),
                    "No such file",
                ],
            );
        }
    }

    #[test]
    fn a_kernel_that_is_not_an_elf_file_is_named() {
        let rvm = Rvm::new().configured("kernel = \"/etc/passwd\"");
        refused(
            &rvm,
            &[
                "/etc/passwd is not an ELF file",
                "kernel in rvm's configuration",
            ],
        );
    }

    #[test]
    fn a_machine_larger_than_the_host_is_refused_with_both_sizes() {
        let rvm = Rvm::new();
        let bundle = Bundle::new(&["true"]).with(|config| {
            config["linux"]["resources"]["memory"] = json!({ "limit": 1_i64 << 39 });
        });
        for refusal in refusals(&rvm, bundle.write()) {
            says(
                &refusal,
                &[
                    "linux.resources.memory.limit in config.json",
                    "MiB available",
                ],
            );
        }
    }

    #[test]
    fn a_qemu_that_is_not_installed_is_named_with_what_to_do() {
        let rvm = Rvm::new()
            .configured("qemu = \"/nonexistent/qemu\"")
            .on_engine("qemu");
        refused(
            &rvm,
            &[
                "/nonexistent/qemu",
                "install qemu-system-x86",
                "qemu in rvm's configuration",
            ],
        );
    }

    /// Runs `rvm run` where there is no /dev/kvm.
    fn without_kvm(rvm: &Rvm, bundle: &Bundle) -> Finished {
        let script = "mount -t tmpfs none /run && mount -t tmpfs none /dev && \
                      mknod -m 666 /dev/null c 1 3 && exec \"$@\"";
        let inner = rvm.command(&["run", "--bundle", bundle.write().to_str().unwrap(), "box"]);
        let mut outer = Command::new("unshare");
        outer.args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
        ]);
        outer.arg(inner.get_program()).args(inner.get_args());
        rvm.adopt(&mut outer);
        command::finish(outer)
    }

    #[test]
    fn a_host_without_kvm_and_qemu_says_both() {
        let bundle = Bundle::new(&["true"]);
        let rvm = Rvm::new()
            .configured("qemu = \"/nonexistent/qemu\"")
            .on_engine("auto");
        let refusal = line(&rvm, &without_kvm(&rvm, &bundle));
        says(
            &refusal,
            &[
                "no /dev/kvm",
                "/nonexistent/qemu is not installed",
                "rvm check",
            ],
        );

        let rvm = Rvm::new().on_engine("kvm");
        says(
            &line(&rvm, &without_kvm(&rvm, &bundle)),
            &["/dev/kvm", "No such file"],
        );
    }
}
