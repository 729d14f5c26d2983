//! Pods through containerd's CRI, measured by tests/bench/run.
//!   rvm-bench-pods RUNTIME COUNT
//! Runs and removes one pod whose container sleeps, without counting it; then one pod alone; then
//! COUNT pods side by side. When all run, it prints one line: the seconds of the one, the seconds
//! of all, and their processes on the host. At the end of standard input it removes them and prints
//! the seconds of that.

use std::io::Read as _;
use std::time::Instant;

use rvm_tests::cri::{Cri, Pod};
use serde_json::json;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [runtime, count] = &arguments[..] else {
        panic!("usage: rvm-bench-pods RUNTIME COUNT");
    };
    let cri = Cri::new();
    let before = cri.world().processes();
    run(&cri, runtime, 1).into_iter().for_each(Pod::remove);

    let start = Instant::now();
    let alone = run(&cri, runtime, 1);
    let one = start.elapsed().as_secs_f64();
    alone.into_iter().for_each(Pod::remove);

    let start = Instant::now();
    let pods = run(&cri, runtime, count.parse().unwrap());
    let all = start.elapsed().as_secs_f64();
    let mut processes = cri.world().processes();
    processes.retain(|pid| !before.contains(pid));
    println!(
        "{}",
        json!({ "one": one, "all": all, "processes": processes })
    );

    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for pod in pods {
            scope.spawn(move || pod.remove());
        }
    });
    println!("{}", json!({ "removed": start.elapsed().as_secs_f64() }));
}

/// Starts pods of one container each, and returns when all run.
fn run<'a>(cri: &'a Cri, runtime: &str, count: usize) -> Vec<Pod<'a>> {
    let configs: Vec<_> = (0..count)
        .map(|number| cri.pod_config(&format!("pod{number}")))
        .collect();
    let start = |config| {
        let pod = cri.run_pod_by(runtime, config).unwrap();
        pod.start("box", "exec sleep 1000000", |_| {});
        pod
    };
    std::thread::scope(|scope| {
        let spawn = |config| scope.spawn(move || start(config));
        let threads: Vec<_> = configs.into_iter().map(spawn).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().unwrap();
        threads.into_iter().map(join).collect()
    })
}
