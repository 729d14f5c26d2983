//! Fields of config.json, from the host to the program in the guest. Fields that only the agent
//! applies are tested with the agent; docs/oci-conformance.md lists all.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use rvm_tests::{Bundle, Finished, Rvm, bind, command};
use serde_json::{Value, json};

fn with_mount(command: &str, mount: Value) -> Bundle {
    Bundle::shell(command).mount(mount)
}

/// The output of a program, which must have succeeded.
fn output(finished: Finished) -> String {
    assert_eq!(finished.code, 0, "{}{}", finished.stdout, finished.stderr);
    finished.stdout
}

fn refusal(rvm: &Rvm, bundle: &Bundle) -> String {
    let finished = rvm.run(bundle, "box");
    assert_eq!(finished.code, 1, "{}", finished.stdout);
    rvm.assert_nothing_left();
    finished.stderr
}

#[test]
fn a_bound_device_is_the_guests() {
    let rvm = Rvm::new();
    // Over a file of the image, to hide it; in a tmpfs; and on a missing path.
    let command = "echo lost >/etc/hidden; wc -c </etc/hidden; head -c 3 /dev/z | wc -c; \
                   stat -c '%F %t:%T' /srv/fuse; : <>/srv/fuse && echo open";
    let bundle = with_mount(
        command,
        bind(Path::new("/dev/null"), "/etc/hidden", &["bind"]),
    )
    .with(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(bind(
            Path::new("/dev/zero"),
            "/dev/z",
            &["rbind", "rprivate"],
        ));
        mounts.push(bind(Path::new("/dev/null"), "/srv/fuse", &["bind"]));
    });
    fs::write(bundle.rootfs("etc/hidden"), "of the image").unwrap();
    let expected = "0\n3\ncharacter special file 1:3\nopen\n";
    assert_eq!(output(rvm.run(&bundle, "box")), expected);
    assert_eq!(
        fs::read_to_string(bundle.rootfs("etc/hidden")).unwrap(),
        "of the image"
    );
}

#[test]
fn what_tells_of_the_host_is_the_guests() {
    let rvm = Rvm::new();
    let command = "cat /host/proc/sys/kernel/osrelease; uname -r; ls /host/sys/devices | head -1; \
                   mount | grep -c ' /cgroup type cgroup2'; ls /host/dev/null";
    let bundle = with_mount(
        command,
        bind(Path::new("/proc"), "/host/proc", &["rbind", "ro"]),
    )
    .with(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(bind(Path::new("/sys"), "/host/sys", &["rbind", "ro"]));
        mounts.push(bind(Path::new("/dev"), "/host/dev", &["rbind"]));
        mounts.push(bind(
            Path::new("/sys/fs/cgroup"),
            "/cgroup",
            &["rbind", "ro"],
        ));
    });
    let text = output(rvm.run(&bundle, "box"));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], lines[1], "{text}");
    assert_eq!(lines[3..], ["1", "/host/dev/null"], "{text}");
}

#[test]
fn what_connects_processes_of_the_host_is_refused_by_name() {
    let rvm = Rvm::new();
    let socket = rvm.path("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let bundle = with_mount("true", bind(&socket, "/run/docker.sock", &["bind"]));
    let message = refusal(&rvm, &bundle);
    let expected = format!("mounts[5].source {} is a socket", socket.display());
    assert!(message.contains(&expected), "{message}");
}

#[test]
fn a_device_of_the_hosts_is_refused_by_name_unless_all_are_allowed() {
    let rvm = Rvm::new();
    let bundle =
        Bundle::shell("ls /dev/screen /dev/none; ls -l /dev/fuse | cut -c1-10").with(|config| {
            config["linux"]["devices"] = json!([
                { "path": "/dev/screen", "type": "c", "major": 4, "minor": 1 },
                { "path": "/dev/none", "type": "b", "major": 4000, "minor": 1 },
                { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640 },
            ]);
        });
    let message = refusal(&rvm, &bundle);
    assert!(
        message.contains("linux.devices: /dev/screen is character device 4:1"),
        "{message}"
    );
    // As engines write for --privileged, with all devices of the host.
    let bundle = bundle.with(|config| {
        config["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
    });
    let finished = rvm.run(&bundle, "box");
    // The host does not have the other one either.
    let there = "/dev/none\ncrw-r-----\n";
    assert_eq!(finished.stdout, there, "{}", finished.stderr);
}

#[test]
fn files_of_the_engine_are_bound_with_their_options() {
    let rvm = Rvm::new();
    let dir = rvm.path("engine");
    fs::create_dir(&dir).unwrap();
    for name in ["resolv.conf", "hosts", "hostname", ".containerenv"] {
        fs::write(dir.join(name), format!("{name}\n")).unwrap();
    }
    let command = "cat /etc/resolv.conf /etc/hosts /etc/hostname /run/.containerenv; \
                   echo more >>/etc/hosts; echo no >/etc/resolv.conf; true";
    let bundle = Bundle::shell(command).with(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        for (name, place, options) in [
            (
                "resolv.conf",
                "/etc/resolv.conf",
                &["bind", "rprivate", "ro"][..],
            ),
            ("hosts", "/etc/hosts", &["bind", "rprivate"]),
            ("hostname", "/etc/hostname", &["bind", "rprivate"]),
            (
                ".containerenv",
                "/run/.containerenv",
                &["bind", "rprivate", "nosuid", "nodev"],
            ),
        ] {
            mounts.push(bind(&dir.join(name), place, options));
        }
    });
    let finished = rvm.run(&bundle, "box");
    assert_eq!(
        finished.stdout,
        "resolv.conf\nhosts\nhostname\n.containerenv\n"
    );
    assert!(
        finished.stderr.contains("Read-only file system"),
        "{}",
        finished.stderr
    );
    assert_eq!(
        fs::read_to_string(dir.join("hosts")).unwrap(),
        "hosts\nmore\n"
    );
}

#[test]
fn an_engines_shared_memory_is_memory_of_the_guest() {
    let rvm = Rvm::new();
    let shm = rvm.path("shm");
    fs::create_dir(&shm).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("shm", &shm, "tmpfs", flags, Some(c"size=1m")).unwrap();
    let command = "grep ' /dev/shm ' /proc/mounts | cut -d' ' -f3; echo x >/dev/shm/x; \
                   stat -f -c %b /dev/shm";
    let bundle = Bundle::shell(command).with(|config| {
        config["mounts"][3] = bind(&shm, "/dev/shm", &["bind", "rprivate", "nosuid"]);
    });
    assert_eq!(output(rvm.run(&bundle, "box")), "tmpfs\n256\n");
    assert_eq!(fs::read_dir(&shm).unwrap().count(), 0);
    rustix::mount::unmount(&shm, rustix::mount::UnmountFlags::DETACH).unwrap();
}

#[test]
fn a_user_namespace_maps_the_owners_of_shared_files() {
    let rvm = Rvm::new();
    let volume = rvm.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "").unwrap();
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let command = "id -u; stat -c '%u %g' / /v/file; touch /v/new; cat /proc/self/uid_map | wc -l; \
                   cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let bundle = with_mount(command, bind(&volume, "/v", &["rbind"])).with(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({ "type": "user" }));
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
        // The network does not belong to the user namespace.
        config["linux"]["sysctl"] = json!({ "net.ipv4.ip_unprivileged_port_start": "80" });
    });
    // As an engine prepares it: the root belongs to the container's root.
    for path in [bundle.rootfs(""), volume.clone(), volume.join("file")] {
        chown(path, Some(100_000), Some(100_000)).unwrap();
    }
    fs::set_permissions(bundle.path(), fs::Permissions::from_mode(0o711)).unwrap();
    assert_eq!(output(rvm.run(&bundle, "box")), "0\n0 0\n0 0\n1\n80\n");
    let new = fs::metadata(volume.join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (100_000, 100_000));
}

#[test]
fn root_of_a_user_namespace_makes_files_where_other_users_of_it_may() {
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let command = "cd /tmp && mkdir own && chown 7:7 . && chmod 555 . own && \
                   touch file own/file && mkdir dir && ln -s file link && busybox mkfifo fifo && \
                   ln file hard && stat -c '%n %u %g' *";
    let capabilities = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER"];
    let bundle = Bundle::shell(command).capabilities(&capabilities);
    let bundle = bundle.with(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({ "type": "user" }));
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
    });
    for path in [bundle.rootfs(""), bundle.rootfs("tmp")] {
        chown(path, Some(100_000), Some(100_000)).unwrap();
    }
    fs::set_permissions(bundle.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let expected = "dir 0 0\nfifo 0 0\nfile 0 0\nhard 0 0\nlink 0 0\nown 0 0\n";
    assert_eq!(output(Rvm::new().run(&bundle, "box")), expected);
}

#[test]
fn the_ids_of_a_volume_can_be_mapped() {
    let rvm = Rvm::new();
    let volume = rvm.path("volume");
    fs::create_dir(&volume).unwrap();
    let none = rustix::mount::MountFlags::empty();
    rustix::mount::mount("volume", &volume, "tmpfs", none, None).unwrap();
    chown(&volume, Some(7), Some(7)).unwrap();
    let map = json!([{ "containerID": 0, "hostID": 1000, "size": 100 }]);
    let mut mount = bind(&volume, "/v", &["rbind", "idmap"]);
    mount["uidMappings"] = map.clone();
    mount["gidMappings"] = map;
    let bundle = with_mount("stat -c '%u %g' /v; touch /v/new", mount).with(|config| {
        config["process"]["user"] = json!({ "uid": 1007, "gid": 1007 });
    });
    assert_eq!(output(rvm.run(&bundle, "box")), "1007 1007\n");
    let new = fs::metadata(volume.join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (7, 7));
    rustix::mount::unmount(&volume, rustix::mount::UnmountFlags::DETACH).unwrap();
}

#[test]
fn options_of_mounts_are_set_in_the_guest() {
    let rvm = Rvm::new();
    let volume = rvm.path("volume");
    fs::create_dir_all(volume.join("inner")).unwrap();
    symlink("file", volume.join("link")).unwrap();
    fs::write(volume.join("file"), "text\n").unwrap();
    fs::copy("/bin/busybox", volume.join("sh")).unwrap();
    let command = "touch /rro/x; /noexec/sh -c true; cat /nosymfollow/link; cat /plain/link; \
                   touch /plain/made && grep -c ' /noatime .*noatime' /proc/mounts";
    let bundle = Bundle::shell(command).with(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        for (place, option) in [
            ("/rro", "rro"),
            ("/noexec", "noexec"),
            ("/nosymfollow", "nosymfollow"),
            ("/noatime", "rnoatime"),
            ("/plain", "rw"),
        ] {
            mounts.push(bind(&volume, place, &["rbind", option]));
        }
    });
    let finished = rvm.run(&bundle, "box");
    assert_eq!(finished.stdout, "text\n1\n", "{}", finished.stderr);
    for text in ["Read-only file system", "Permission denied", "Too many"] {
        assert!(
            finished.stderr.contains(text),
            "{text}: {}",
            finished.stderr
        );
    }
    assert!(volume.join("made").exists());
}

#[test]
fn options_of_a_volume_are_for_its_top_or_with_an_r_for_all_mounts_in_it() {
    let rvm = Rvm::new();
    let volume = rvm.path("volume");
    let tmpfs = |point: &Path, flags| {
        fs::create_dir(point).unwrap();
        rustix::mount::mount("rvm-test", point, "tmpfs", flags, None).unwrap();
    };
    tmpfs(&volume, rustix::mount::MountFlags::empty());
    tmpfs(&volume.join("in"), rustix::mount::MountFlags::NOEXEC);
    let command = "cd /v; for place in ro rro host; do for file in $place/file $place/in/$place; \
                   do touch $file 2>/dev/null && echo $file; done; done; \
                   grep -o ' /v/[a-z/]* [a-z0-9]* r[ow],[^ ]*' /proc/mounts | \
                   sed 's/ [a-z0-9]* / /; s/relatime.*//'";
    let bundle = Bundle::shell(command)
        .mount(bind(&volume, "/v/ro", &["rbind", "ro", "nosuid"]))
        .mount(bind(&volume, "/v/rro", &["rbind", "rro", "rnosuid"]))
        .mount(bind(&volume, "/v/host", &["rbind"]));
    let expected = "ro/in/ro\nhost/file\nhost/in/host\n /v/ro ro,nosuid,\n /v/ro/in rw,noexec,\n \
                    /v/rro ro,nosuid,\n /v/rro/in ro,nosuid,noexec,\n /v/host rw,\n \
                    /v/host/in rw,noexec,\n";
    assert_eq!(output(rvm.run(&bundle, "box")), expected);
    assert!(volume.join("in/ro").exists() && !volume.join("in/rro").exists());
    rustix::mount::unmount(volume, rustix::mount::UnmountFlags::DETACH).unwrap();
}

#[test]
fn the_machine_is_the_one_that_hw_config_asks_for() {
    let rvm = Rvm::new();
    let command = "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo; nproc";
    let bundle = Bundle::shell(command).with(|config| {
        config["ociVersion"] = json!("1.3.0");
        config["vm"] = json!({ "hwConfig": { "vcpus": 3, "memory": 300 << 20 } });
        config["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_LOCAL" });
    });
    let out = output(rvm.run(&bundle, "box"));
    let [memory, vcpus] = out.lines().collect::<Vec<_>>()[..] else {
        panic!("{out}")
    };
    let memory: u32 = memory.parse().unwrap();
    assert!((200..=300).contains(&memory), "{memory} MiB");
    assert_eq!(vcpus, "3");
}

#[test]
fn no_processes_beside_the_first_are_allowed_by_a_limit_of_zero() {
    let rvm = Rvm::new();
    for (version, code) in [("1.2.1", 0), ("1.3.0", 2)] {
        let bundle = Bundle::shell("(exit 0); exit 0").with(|config| {
            config["ociVersion"] = json!(version);
            config["linux"]["resources"]["pids"] = json!({ "limit": 0 });
        });
        let finished = rvm.run(&bundle, "box");
        assert_eq!(finished.code, code, "{version}: {}", finished.stderr);
    }
}

#[test]
fn what_cannot_be_had_is_refused_before_anything_is_made() {
    let rvm = Rvm::new();
    for (pointer, value, field) in [
        (
            "/linux/intelRdt",
            json!({ "closID": "x" }),
            "linux.intelRdt",
        ),
        (
            "/linux/resources/rdma",
            json!({ "mlx": {} }),
            "linux.resources.rdma",
        ),
        (
            "/linux/resources/network",
            json!({ "classID": 1 }),
            "linux.resources.network.classID",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_NOTIFY" }),
            "linux.seccomp.defaultAction",
        ),
        (
            "/process/scheduler",
            json!({ "policy": "SCHED_ISO" }),
            "process.scheduler.policy",
        ),
        ("/windows", json!({}), "windows"),
    ] {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let bundle =
            Bundle::shell("true").with(|config| config.pointer_mut(parent).unwrap()[key] = value);
        let message = refusal(&rvm, &bundle);
        assert!(
            message.contains(&format!("config.json: {field}")),
            "{message}"
        );
        assert!(
            !message.contains("guest's console"),
            "no machine was started: {message}"
        );
    }
}

#[test]
fn what_the_specification_does_not_know_is_passed_over() {
    let rvm = Rvm::new();
    let bundle = Bundle::shell("grep CapBnd /proc/self/status; echo \"$A\"").with(|config| {
        config["org.example.extension"] = json!({ "deep": [1] });
        config["linux"]["newField"] = json!(true);
        config["process"]["env"]
            .as_array_mut()
            .unwrap()
            .push(json!("A=1"));
        let bounding = json!(["CAP_KILL", "CAP_OF_TOMORROW"]);
        config["process"]["capabilities"] = json!({ "bounding": bounding });
    });
    let finished = rvm.run(&bundle, "box");
    assert_eq!(finished.stdout, "CapBnd:\t0000000000000020\n1\n");
    assert!(
        finished.stderr.contains("CAP_OF_TOMORROW"),
        "{}",
        finished.stderr
    );
}

#[test]
fn the_machine_is_as_likely_to_be_killed_as_the_container() {
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["sleep", "1000"])
        .with(|config| config["process"]["oomScoreAdj"] = json!(500));
    rvm.create(&bundle, "box");
    let monitor = rvm.state("box")["pid"].as_i64().unwrap() as i32;
    let machine: Vec<i32> = rvm
        .processes()
        .into_iter()
        .filter(|pid| *pid != monitor)
        .collect();
    assert!(!machine.is_empty());
    for pid in machine {
        let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        assert_eq!(score, "500\n", "process {pid}");
    }
    rvm.ok(&["delete", "--force", "box"]);
}

#[test]
fn a_configuration_and_a_process_object_may_be_large() {
    let rvm = Rvm::new();
    // More than a request to the agent carries, of which the program gets what the kernel allows.
    let many = |count: usize, length: usize| -> Vec<String> {
        let entry = |number| format!("V{number}={}", "x".repeat(length));
        (0..count).map(entry).collect()
    };
    let environment = [vec!["PATH=/bin".to_owned()], many(15, 100_000)].concat();
    let script = "env | wc -c; exec sleep 1000";
    let bundle = Bundle::shell(script).with(|config| {
        config["process"]["env"] = json!(environment);
        config["annotations"] = json!({ "org.example.large": "y".repeat(5_000_000) });
        // A hook in the guest has the configuration beside its root.
        config["hooks"] = json!({ "startContainer": [{ "path": "/bin/true" }] });
    });
    let output = fs::File::create(rvm.path("output")).unwrap();
    let mut run = rvm.command(&["run", "--detach", "--bundle"]);
    run.arg(bundle.write()).arg("box").stdout(output);
    assert!(run.status().unwrap().success());
    let read = || fs::read_to_string(rvm.path("output")).unwrap();
    command::eventually("the program counts", || read().ends_with('\n'));
    assert!(read().trim().parse::<usize>().unwrap() > 1_500_000);
    assert_eq!(rvm.status("box"), "running");

    // The last value of a variable holds, so the program's environment is small.
    let mut process = bundle.config["process"].clone();
    process["args"] = json!(["sh", "-c", "env | wc -c"]);
    process["env"] = json!([environment, many(15, 100_000), many(15, 100_000)].concat());
    let file = rvm.path("process.json");
    fs::write(&file, process.to_string()).unwrap();
    assert!(fs::metadata(&file).unwrap().len() > 4 << 20);
    let counted = rvm.ok(&["exec", "--process", file.to_str().unwrap(), "box"]);
    assert!(counted.trim().parse::<usize>().unwrap() > 1_500_000);

    // One string of more than 128 KiB is the kernel's limit, and runc's.
    process["env"] = json!(["PATH=/bin", many(1, 200_000)[0]]);
    fs::write(&file, process.to_string()).unwrap();
    let refused = rvm.call(&["exec", "--process", file.to_str().unwrap(), "box"]);
    assert!(
        refused.stderr.contains("argument list too long"),
        "{refused:?}"
    );
    rvm.ok(&["delete", "--force", "box"]);
}
