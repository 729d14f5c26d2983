//! The agent in a real guest, driven as its host drives it.
#![allow(missing_docs)]

mod support;

use serde_json::json;
use support::{Bundle, Outcome, message};

fn outcome(status: u32, stdout: &str) -> Outcome {
    Outcome { status, stdout: stdout.to_owned(), stderr: String::new() }
}

#[tokio::test]
async fn the_agent_tells_its_version_and_kernel() {
    let guest = guest_or_skip!();
    let answer = guest.agent.check(support::context(), &Default::default()).await.unwrap();
    assert_eq!(answer.agent_version, env!("CARGO_PKG_VERSION"));
    assert!(answer.kernel_release.starts_with("6."), "{}", answer.kernel_release);
    assert!(answer.ready_ns > answer.init_started_ns);
    eprintln!("init after {} ms, ready {} us later", answer.init_started_ns / 1_000_000,
        (answer.ready_ns - answer.init_started_ns) / 1000);
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
    let again = Bundle { spec: Bundle::new(guest.machine, "missing2", &["/bin/true"]).spec, ..bundle };
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
