//! The agent in a real guest, driven as its host drives it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod support;

use serde_json::json;
use support::{Bundle, message, outcome};

#[tokio::test]
async fn the_agent_tells_its_version_and_kernel() {
    let guest = guest_or_skip!();
    let answer = guest
        .agent
        .check(support::context(), &Default::default())
        .await
        .unwrap();
    assert_eq!(answer.agent_version, env!("CARGO_PKG_VERSION"));
    assert!(
        answer.kernel_release.starts_with("6."),
        "{}",
        answer.kernel_release
    );
    assert_eq!(
        answer.protocol_version,
        rvm_protocol::AGENT_PROTOCOL_VERSION
    );
    assert!(answer.ready_ns > answer.init_started_ns);
    eprintln!(
        "init after {} ms, ready {} us later",
        answer.init_started_ns / 1_000_000,
        (answer.ready_ns - answer.init_started_ns) / 1000
    );
}

#[tokio::test]
async fn check_takes_a_seed_of_at_most_256_bytes_any_number_of_times() {
    let guest = guest_or_skip!();
    let check = async |length| {
        let request = rvm_protocol::agent::CheckRequest {
            seed: vec![7; length],
            ..Default::default()
        };
        guest.agent.check(support::context(), &request).await
    };
    for length in [0, 32, 256, 32] {
        check(length).await.unwrap();
    }
    assert_eq!(
        message(check(257).await),
        "a seed of 257 bytes is too long: at most 256 are taken"
    );
}

#[tokio::test]
async fn a_container_runs_and_its_output_and_status_arrive() {
    let guest = guest_or_skip!();
    let bundle = Bundle::shell(guest.machine, "hello", "echo hello; echo oops >&2; exit 7");
    let outcome = guest.run(&bundle).await.unwrap();
    assert_eq!((outcome.status, outcome.stdout.as_str()), (7, "hello\n"));
    assert_eq!(outcome.stderr, "oops\n");
}

#[tokio::test]
async fn a_missing_program_is_reported_at_creation_in_runcs_words() {
    let guest = guest_or_skip!();
    let bundle = Bundle::new(guest.machine, "missing", &["nothing-such"]);
    assert_eq!(
        message(guest.run(&bundle).await),
        "unable to start container process: exec: \"nothing-such\": executable file not found in \
         $PATH"
    );
    // Nothing is left of it: the id is free.
    let again = Bundle {
        spec: Bundle::new(guest.machine, "missing2", &["/bin/true"]).spec,
        ..bundle
    };
    assert_eq!(guest.run(&again).await.unwrap(), outcome(0, ""));
}

#[tokio::test]
async fn config_json_is_refused_by_field() {
    let guest = guest_or_skip!();
    let bundle = Bundle::new(guest.machine, "rdt", &["/bin/true"])
        .with(|spec| spec["linux"]["intelRdt"] = json!({}));
    assert_eq!(
        message(guest.run(&bundle).await),
        "config.json: linux.intelRdt is not supported in the guest"
    );
}

#[tokio::test]
async fn the_process_is_the_user_it_is_to_be() {
    let guest = guest_or_skip!();
    let command = "id -u; id -g; id -G; echo $HOME; umask; pwd; echo $V; echo hi > /dev/stdout";
    let bundle = Bundle::shell(guest.machine, "user", command).with(|spec| {
        spec["process"]["user"] =
            json!({ "uid": 1000, "gid": 100, "additionalGids": [5, 7], "umask": 0o027 });
        spec["process"]["cwd"] = json!("/home/made/up");
        spec["process"]["env"] = json!(["PATH=/bin", "V=1", "V=2"]);
    });
    let expected = "1000\n100\n100 5 7\n/home\n0027\n/home/made/up\n2\nhi\n";
    assert_eq!(guest.run(&bundle).await.unwrap(), outcome(0, expected));
}

#[tokio::test]
async fn standard_input_arrives_and_ends() {
    let guest = guest_or_skip!();
    let bundle = Bundle::new(guest.machine, "cat", &["cat"]);
    let (mut streams, stdio) = guest.streams().await;
    guest.create(&bundle, stdio).await.unwrap();
    guest.start("cat").await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut streams.stdin, b"to and fro")
        .await
        .unwrap();
    assert_eq!(streams.collect().await.stdout, "to and fro");
    assert_eq!(guest.wait("cat", "").await.unwrap(), 0);
    guest.remove("cat").await.unwrap();
}

#[tokio::test]
async fn a_lot_of_output_arrives_whole() {
    let guest = guest_or_skip!();
    let bundle = Bundle::shell(guest.machine, "lots", "head -c 50000000 /dev/zero");
    let begin = std::time::Instant::now();
    let result = guest.run(&bundle).await.unwrap();
    assert_eq!(result.stdout.len(), 50_000_000);
    eprintln!("50 MB in {} ms", begin.elapsed().as_millis());
}

#[tokio::test]
async fn streams_may_be_connected_after_the_start() {
    let guest = guest_or_skip!();
    let bundle = Bundle::shell(guest.machine, "late", "head -c 300000 /dev/zero");
    let id = guest.machine.id();
    let stdio = rvm_protocol::agent::Stdio {
        stdout: id,
        ..Default::default()
    };
    guest.create(&bundle, stdio).await.unwrap();
    guest.start("late").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let stream = guest.stream(id).await;
    assert_eq!(support::read(stream).await.len(), 300_000);
    guest.remove("late").await.unwrap();
}

#[tokio::test]
async fn a_closed_standard_input_closes_the_connection() {
    let guest = guest_or_skip!();
    let bundle = Bundle::shell(guest.machine, "closes", "exec < /dev/null; sleep 100");
    let (mut streams, stdio) = guest.streams().await;
    guest.create(&bundle, stdio).await.unwrap();
    guest.start("closes").await.unwrap();
    let mut byte = [0];
    let end = tokio::io::AsyncReadExt::read(&mut streams.stdin, &mut byte);
    let end = tokio::time::timeout(std::time::Duration::from_secs(10), end).await;
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
    guest.remove("closes").await.unwrap();
}

#[tokio::test]
async fn signals_end_a_process_with_128_and_the_number() {
    let guest = guest_or_skip!();
    let bundle = Bundle::shell(
        guest.machine,
        "sig",
        "trap 'exit 3' USR1; while :; do sleep 0.1; done",
    );
    guest.run_in_background(&bundle).await;
    guest.signal("sig", "", 0, false).await.unwrap();
    guest.exec_shell("sig", "settle", "sleep 0.3").await;
    guest
        .signal("sig", "", libc::SIGUSR1 as u32, false)
        .await
        .unwrap();
    assert_eq!(guest.wait("sig", "").await.unwrap(), 3);
    assert_eq!(
        guest.wait("sig", "").await.unwrap(),
        3,
        "asking again gives the same answer"
    );
    assert_eq!(
        message(guest.signal("sig", "", 9, false).await),
        "container not running"
    );
    assert_eq!(
        message(guest.start("sig").await),
        "cannot start a container that has stopped"
    );
    guest.remove("sig").await.unwrap();
    assert_eq!(
        message(guest.remove("sig").await),
        "container does not exist: sig"
    );

    let bundle = Bundle::new(guest.machine, "kill", &["sleep", "100"]);
    guest.run_in_background(&bundle).await;
    guest.signal("kill", "", 9, true).await.unwrap();
    assert_eq!(guest.wait("kill", "").await.unwrap(), 137);
    guest.remove("kill").await.unwrap();
}

#[tokio::test]
async fn a_process_joins_a_running_container() {
    let guest = guest_or_skip!();
    let bundle = Bundle::new(guest.machine, "host", &["sleep", "100"]).with(|spec| {
        spec["process"]["capabilities"]["bounding"] = json!(["CAP_KILL"]);
    });
    guest.run_in_background(&bundle).await;
    let result = guest
        .exec_shell("host", "e1", "hostname; ps | grep -c '[s]leep 100'; exit 9")
        .await;
    assert_eq!(result, outcome(9, "inside\n1\n"));
    let namespaces = "for n in mnt net pid ipc uts cgroup; do \
        [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo $n differs; done; \
        grep CapBnd /proc/self/status; cat /proc/self/cgroup; cat /proc/self/oom_score_adj";
    let result = guest.exec_shell("host", "e2", namespaces).await;
    assert_eq!(result, outcome(0, "CapBnd:\t0000000000000020\n0::/\n0\n"));
    let process = json!({ "args": ["nope"], "cwd": "/", "user": {}, "env": ["PATH=/bin"] });
    let missing = guest.exec("host", "e3", process, Default::default()).await;
    assert!(message(missing).ends_with("exec: \"nope\": executable file not found in $PATH"));
    let process = json!({ "args": ["true"], "cwd": "/nowhere", "user": {}, "env": ["PATH=/bin"] });
    let missing = guest.exec("host", "e3", process, Default::default()).await;
    assert!(message(missing).ends_with(
        "chdir to cwd (\"/nowhere\") set in config.json failed: no such file or directory"
    ));
    guest.remove("host").await.unwrap();
}

#[tokio::test]
async fn a_terminal_has_a_size_that_can_change() {
    let guest = guest_or_skip!();
    let command = "tty; stty size; [ -c /dev/console ] && echo console; read x; stty size; \
                   readlink /proc/self/fd/1";
    let bundle = Bundle::shell(guest.machine, "tty", command);
    let id = guest.machine.id();
    let mut stream = guest.stream(id).await;
    let stdio = rvm_protocol::agent::Stdio {
        terminal: true,
        stdin: id,
        rows: 33,
        cols: 99,
        ..Default::default()
    };
    guest.create(&bundle, stdio).await.unwrap();
    guest.start("tty").await.unwrap();
    let before = "/dev/pts/0\r\n33 99\r\nconsole\r\n";
    let mut seen = vec![0; before.len()];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut seen)
        .await
        .unwrap();
    assert_eq!(String::from_utf8(seen).unwrap(), before);
    let request = rvm_protocol::agent::ResizeTerminalRequest {
        container_id: "tty".to_owned(),
        rows: 50,
        cols: 120,
        ..Default::default()
    };
    guest
        .agent
        .resize_terminal(support::context(), &request)
        .await
        .unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"\n")
        .await
        .unwrap();
    let text = support::read(stream).await.replace("\r\n", "\n");
    assert_eq!(text, "\n50 120\n/dev/pts/0\n");
    assert_eq!(guest.wait("tty", "").await.unwrap(), 0);
    guest.remove("tty").await.unwrap();
}

#[tokio::test]
async fn an_exec_can_have_a_terminal() {
    let guest = guest_or_skip!();
    guest
        .run_in_background(&Bundle::new(guest.machine, "exectty", &["sleep", "100"]))
        .await;
    let id = guest.machine.id();
    let stream = guest.stream(id).await;
    let stdio = rvm_protocol::agent::Stdio {
        terminal: true,
        stdin: id,
        ..Default::default()
    };
    let process = json!({ "args": ["sh", "-c", "tty; echo ok > /dev/tty"], "cwd": "/",
        "user": { "uid": 1000 }, "env": ["PATH=/bin"], "terminal": true });
    guest.exec("exectty", "t", process, stdio).await.unwrap();
    assert_eq!(support::read(stream).await, "/dev/pts/0\r\nok\r\n");
    guest.remove("exectty").await.unwrap();
}

#[tokio::test]
async fn what_a_container_without_pid_namespace_leaves_behind_is_killed() {
    let guest = guest_or_skip!();
    let bundle =
        Bundle::shell(guest.machine, "left", "sleep 4321 & sleep 4321 & exit 0").with(|spec| {
            spec["linux"]["namespaces"]
                .as_array_mut()
                .unwrap()
                .retain(|n| n["type"] != "pid");
        });
    guest.run_in_background(&bundle).await;
    assert_eq!(guest.wait("left", "").await.unwrap(), 0);
    let probe = Bundle::shell(guest.machine, "probe", "ps | grep -c 'sleep 432[1]'").with(|spec| {
        spec["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|n| n["type"] != "pid");
    });
    assert_eq!(guest.run(&probe).await.unwrap().stdout, "0\n");
    guest.remove("left").await.unwrap();
}

#[tokio::test]
async fn hooks_run_with_the_state_and_can_fail() {
    let guest = guest_or_skip!();
    let bundle = Bundle::shell(guest.machine, "hooks", "cat /start");
    let create = format!("{}/hooks/rootfs/bin/busybox", support::Machine::SHARED);
    let bundle = bundle.with(|spec| {
        spec["hooks"] = json!({
            "createContainer": [{ "path": create, "args": ["sh", "-c",
                format!("cat > {}/hooks/rootfs/create", support::Machine::SHARED)],
                "env": ["A=1"], "timeout": 5 }],
            "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", "cat > /start"] }],
        });
    });
    let result = guest.run(&bundle).await.unwrap();
    assert!(
        result.stdout.contains(r#""id":"hooks","status":"created""#),
        "{result:?}"
    );
    let created = std::fs::read_to_string(bundle.rootfs.join("create")).unwrap();
    assert!(created.contains(r#""status":"creating""#), "{created}");

    let bundle = Bundle::new(guest.machine, "badhook", &["true"]).with(|spec| {
        spec["hooks"] = json!({ "startContainer": [
            { "path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"] }] });
    });
    let failure = message(guest.run(&bundle).await);
    assert!(
        failure.ends_with(
            "error running startContainer hook #0: exit status 3, stdout: , stderr: why"
        ),
        "{failure}"
    );
    guest.remove("badhook").await.unwrap();
    let bundle = Bundle::new(guest.machine, "slowhook", &["true"]).with(|spec| {
        spec["hooks"] = json!({ "createContainer": [
            { "path": format!("{}/slowhook/rootfs/bin/busybox", support::Machine::SHARED),
              "args": ["sleep", "30"], "timeout": 1 }] });
    });
    assert!(message(guest.run(&bundle).await).contains("killed after its timeout of 1 s"));
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_says_so_on_its_standard_error() {
    let guest = guest_or_skip!();
    let bundle = Bundle::new(guest.machine, "format", &["/bin/broken"]);
    std::fs::write(bundle.rootfs.join("bin/broken"), b"\x01\x02\x03").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bundle.rootfs.join("bin/broken"), mode).unwrap();
    let result = guest.run(&bundle).await.unwrap();
    assert_eq!(
        (result.status, result.stderr.as_str()),
        (255, "exec /bin/broken: exec format error\n")
    );
}

#[tokio::test]
async fn what_a_program_wrote_through_a_mapping_is_on_the_host_when_its_exit_is_told() {
    let guest = guest_or_skip!();
    const SOURCE: &str = r#"
        #include <fcntl.h>
        #include <sys/mman.h>
        #include <unistd.h>
        int main(void) {
            int fd = open("/tmp/mapped", O_RDWR | O_CREAT, 0644);
            ftruncate(fd, 1 << 20);
            char *p = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            close(fd);
            for (int i = 0; i < 1 << 20; i++) p[i] = 'x';
            fd = open("/tmp/written", O_WRONLY | O_CREAT, 0644);
            write(fd, p, 1 << 20);
            _exit(0);
        }"#;
    let bundle = Bundle::new(guest.machine, "mapping", &["/bin/map"]);
    let source = bundle.rootfs.join("map.c");
    std::fs::write(&source, SOURCE).unwrap();
    let compiled = std::process::Command::new("cc")
        .args(["-static", "-w", "-o"])
        .arg(bundle.rootfs.join("bin/map"))
        .arg(&source)
        .status();
    if !compiled.is_ok_and(|status| status.success()) {
        return eprintln!("skipped: no C compiler that links statically");
    }
    guest.run_in_background(&bundle).await;
    assert_eq!(guest.wait("mapping", "").await.unwrap(), 0);
    for file in ["tmp/mapped", "tmp/written"] {
        let content = std::fs::read(bundle.rootfs.join(file)).unwrap();
        assert!(
            content.len() == 1 << 20 && content.iter().all(|byte| *byte == b'x'),
            "{file}"
        );
    }
    guest.remove("mapping").await.unwrap();
}
