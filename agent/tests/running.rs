//! What can be done to a running container: pause, update, stats, lists, extra descriptors.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod support;

use std::time::Duration;

use rvm_protocol::agent as api;
use serde_json::json;
use support::{Bundle, Guest, context, message};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

async fn pause(guest: &Guest, id: &str) -> ttrpc::Result<()> {
    let request = api::PauseContainerRequest {
        container_id: id.to_owned(),
        ..Default::default()
    };
    guest
        .agent
        .pause_container(context(), &request)
        .await
        .map(drop)
}

async fn resume(guest: &Guest, id: &str) -> ttrpc::Result<()> {
    let request = api::ResumeContainerRequest {
        container_id: id.to_owned(),
        ..Default::default()
    };
    guest
        .agent
        .resume_container(context(), &request)
        .await
        .map(drop)
}

async fn update(guest: &Guest, id: &str, resources: serde_json::Value) -> ttrpc::Result<()> {
    let request = api::UpdateContainerRequest {
        container_id: id.to_owned(),
        resources: resources.to_string().into_bytes(),
        ..Default::default()
    };
    guest
        .agent
        .update_container(context(), &request)
        .await
        .map(drop)
}

async fn stats(guest: &Guest, id: &str) -> api::StatsResponse {
    let request = api::StatsRequest {
        container_id: id.to_owned(),
        ..Default::default()
    };
    guest.agent.stats(context(), &request).await.unwrap()
}

fn shell(command: &str) -> serde_json::Value {
    json!({ "args": ["/bin/sh", "-c", command], "cwd": "/", "user": {}, "env": ["PATH=/bin"] })
}

#[tokio::test]
async fn a_paused_container_stands_still_until_it_is_resumed() {
    let guest = guest_or_skip!();
    let bundle = Bundle::shell(
        guest.machine,
        "paused",
        "while :; do echo; sleep 0.02; done",
    );
    let (mut streams, stdio) = guest.streams().await;
    guest.create(&bundle, stdio).await.unwrap();
    let not_running = message(pause(&guest, "paused").await);
    assert_eq!(not_running, "container not running");
    guest.start("paused").await.unwrap();
    let not_paused = message(resume(&guest, "paused").await);
    assert_eq!(not_paused, "container not paused");

    streams.stdout.read_exact(&mut [0; 3]).await.unwrap();
    pause(&guest, "paused").await.unwrap();
    // What was written before is on its way; nothing follows it.
    let mut buffer = [0; 4096];
    let quiet = Duration::from_millis(300);
    while let Ok(read) = tokio::time::timeout(quiet, streams.stdout.read(&mut buffer)).await {
        assert!(read.unwrap() < buffer.len());
    }
    let exec = guest
        .exec("paused", "e", shell("true"), Default::default())
        .await;
    assert!(message(exec).starts_with("cannot exec in a paused container"));
    resume(&guest, "paused").await.unwrap();
    streams.stdout.read_exact(&mut [0; 3]).await.unwrap();

    pause(&guest, "paused").await.unwrap();
    guest.signal("paused", "", 9, false).await.unwrap();
    assert_eq!(guest.wait("paused", "").await.unwrap(), 137);
    guest.remove("paused").await.unwrap();
}

#[tokio::test]
async fn an_exec_that_ignores_the_pause_waits_for_its_end() {
    let guest = guest_or_skip!();
    let bundle = Bundle::new(guest.machine, "patient", &["sleep", "1000"]);
    guest.run_in_background(&bundle).await;
    pause(&guest, "patient").await.unwrap();
    let request = api::ExecProcessRequest {
        container_id: "patient".to_owned(),
        exec_id: "e".to_owned(),
        process: shell("exit 3").to_string().into_bytes(),
        ignore_paused: true,
        ..Default::default()
    };
    let mut exec = Box::pin(guest.agent.exec_process(context(), &request));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut exec).await;
    assert!(
        early.is_err(),
        "it does not run while all else stands still"
    );
    resume(&guest, "patient").await.unwrap();
    exec.await.unwrap();
    assert_eq!(guest.wait("patient", "e").await.unwrap(), 3);
    // A paused container can be removed as it is.
    pause(&guest, "patient").await.unwrap();
    guest.remove("patient").await.unwrap();
}

#[tokio::test]
async fn limits_change_while_the_container_runs() {
    let guest = guest_or_skip!();
    let bundle = Bundle::new(guest.machine, "limits", &["sleep", "1000"]).with_mount(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] }));
    guest.run_in_background(&bundle).await;
    let resources = json!({
        "memory": { "limit": 64 << 20 },
        "cpu": { "quota": 50_000, "period": 100_000, "shares": 2048 },
        "pids": { "limit": 77 },
        "unified": { "memory.high": "33554432" },
    });
    update(&guest, "limits", resources).await.unwrap();
    let command = "cd /sys/fs/cgroup && cat memory.max memory.high cpu.max pids.max";
    let seen = guest.exec_shell("limits", "e", command).await;
    assert_eq!(seen.stdout, "67108864\n33554432\n50000 100000\n77\n");
    update(&guest, "limits", json!({ "pids": { "limit": -1 } }))
        .await
        .unwrap();
    let seen = guest.exec_shell("limits", "e2", command).await;
    assert_eq!(seen.stdout, "67108864\n33554432\n50000 100000\nmax\n");
    let refused = update(&guest, "limits", json!({ "memory": { "swappiness": 3 } })).await;
    assert!(message(refused).contains("memory.swappiness"));

    let stats = stats(&guest, "limits").await;
    assert_eq!((stats.memory.max, stats.pids.max), (64 << 20, u64::MAX));
    guest.remove("limits").await.unwrap();
}

#[tokio::test]
async fn stats_count_what_was_used() {
    let guest = guest_or_skip!();
    let script = "head -c 20000000 /dev/zero > /tmp/f; i=0; while [ $i -lt 3000 ]; do i=$((i+1)); \
                  done; echo; exec sleep 1000";
    let bundle = Bundle::shell(guest.machine, "used", script).with_mount(json!({
        "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" }));
    let (mut streams, stdio) = guest.streams().await;
    guest.create(&bundle, stdio).await.unwrap();
    guest.start("used").await.unwrap();
    streams.stdout.read_exact(&mut [0; 1]).await.unwrap();
    let stats = stats(&guest, "used").await;
    assert!(stats.cpu.usage_usec > 0 && stats.cpu.usage_usec >= stats.cpu.user_usec);
    assert!(
        stats.memory.current > 20_000_000,
        "{}",
        stats.memory.current
    );
    assert!(stats.memory.stat["shmem"] > 19_000_000);
    assert!(stats.memory.peak >= stats.memory.current);
    assert_eq!(stats.pids.current, 1);
    guest.remove("used").await.unwrap();
}

#[tokio::test]
async fn the_list_has_every_process_and_what_ps_would_say() {
    let guest = guest_or_skip!();
    let bundle = Bundle::shell(guest.machine, "listed", "sleep 1000 & exec sleep 2000");
    let first = guest.run_in_background(&bundle).await;
    let process = json!({ "args": ["sleep", "3000"], "cwd": "/", "env": ["PATH=/bin"],
                          "user": { "uid": 1234, "gid": 5 }, "terminal": true });
    let stdio = api::Stdio {
        terminal: true,
        ..Default::default()
    };
    let exec = guest.exec("listed", "e", process, stdio).await.unwrap();
    let request = api::ListProcessesRequest {
        container_id: "listed".to_owned(),
        ..Default::default()
    };
    let listed = async {
        loop {
            let list = guest.agent.list_processes(context(), &request).await;
            let list = list.unwrap();
            // A process that a shell has forked is a shell until it executes its program.
            if !list.processes.iter().any(|p| p.command.contains("sh -c")) {
                break list;
            }
        }
    };
    let limit = Duration::from_secs(20);
    let mut list = tokio::time::timeout(limit, listed).await.unwrap();
    list.processes.sort_by(|a, b| a.command.cmp(&b.command));
    let commands: Vec<_> = list.processes.iter().map(|p| p.command.as_str()).collect();
    assert_eq!(commands, ["sleep 1000", "sleep 2000", "sleep 3000"]);
    let [child, parent, exec_d] = &list.processes[..] else {
        panic!()
    };
    assert_eq!((parent.pid, child.ppid, exec_d.pid), (first, first, exec));
    assert_eq!((parent.uid, exec_d.uid), (0, 1234));
    assert_eq!(
        (parent.terminal.as_str(), exec_d.terminal.as_str()),
        ("", "pts/0")
    );
    assert!(parent.started_at_ns <= exec_d.started_at_ns && exec_d.started_at_ns <= list.now_ns);
    guest.remove("listed").await.unwrap();
}

#[tokio::test]
async fn extra_descriptors_are_there_from_3_on() {
    let guest = guest_or_skip!();
    let script = "ls /proc/self/fd | head -n 7; cat <&3; echo out >&4; read line <&5; \
                  echo got $line >&5; exec 5<&- 5>&-; readlink /proc/self/fd/6; cat";
    let bundle = Bundle::shell(guest.machine, "extra", script);
    let (streams, mut stdio) = guest.streams().await;
    let ids = [guest.machine.id(), guest.machine.id(), guest.machine.id()];
    let kinds = [
        api::extra_descriptor::Kind::INPUT,
        api::extra_descriptor::Kind::OUTPUT,
        api::extra_descriptor::Kind::SOCKET,
    ];
    stdio.extra = ids
        .iter()
        .zip(kinds)
        .map(|(id, kind)| api::ExtraDescriptor {
            stream: *id,
            kind: kind.into(),
            ..Default::default()
        })
        .chain([api::ExtraDescriptor::default()])
        .collect();
    let mut input = guest.stream(ids[0]).await;
    let output = guest.stream(ids[1]).await;
    let mut socket = guest.stream(ids[2]).await;
    guest.create(&bundle, stdio).await.unwrap();
    guest.start("extra").await.unwrap();
    input.write_all(b"in\n").await.unwrap();
    drop(input);
    socket.write_all(b"question\n").await.unwrap();
    assert_eq!(support::read(socket).await, "got question\n");
    let outcome = streams.collect().await;
    // 7 is the directory that ls reads.
    assert_eq!(
        outcome.stdout, "0\n1\n2\n3\n4\n5\n6\nin\n/dev/null\n",
        "{}",
        outcome.stderr
    );
    assert_eq!(support::read(output).await, "out\n");
    guest.remove("extra").await.unwrap();
}

#[tokio::test]
async fn an_exec_can_start_in_a_group_below_the_containers() {
    let guest = guest_or_skip!();
    let bundle = Bundle::new(guest.machine, "below", &["sleep", "1000"]).with_mount(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" }));
    guest.run_in_background(&bundle).await;
    let made = guest
        .exec_shell("below", "m", "mkdir /sys/fs/cgroup/sub && echo made")
        .await;
    assert_eq!(made.stdout, "made\n", "{}", made.stderr);
    let request = |cgroup: &str| api::ExecProcessRequest {
        container_id: "below".to_owned(),
        exec_id: cgroup.to_owned(),
        process: shell("grep -q /sub$ /proc/self/cgroup")
            .to_string()
            .into_bytes(),
        cgroup: cgroup.to_owned(),
        ..Default::default()
    };
    guest
        .agent
        .exec_process(context(), &request("/sub"))
        .await
        .unwrap();
    assert_eq!(guest.wait("below", "/sub").await.unwrap(), 0);
    for outside in ["../rvm-below", "nowhere"] {
        let refused = guest.agent.exec_process(context(), &request(outside)).await;
        assert!(message(refused).contains(outside));
    }
    guest.remove("below").await.unwrap();
}
