//! What --debug adds, for verbs that need no machine or fail before they make one.

use std::process::Command;

#[test]
fn every_verb_says_something_with_debug() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    let bundle = bundle.to_str().unwrap();
    for args in [
        &["create", "--bundle", bundle, "box"][..],
        &["start", "box"],
        &["state", "box"],
        &["kill", "box", "KILL"],
        &["delete", "--force", "box"],
        &["run", "--bundle", bundle, "box"],
        &["exec", "box", "true"],
        &["ps", "box"],
        &["pause", "box"],
        &["resume", "box"],
        &["update", "--pids-limit", "5", "box"],
        &["events", "--stats", "box"],
        &["list"],
        &["spec", "--bundle", bundle],
        &["features"],
        &["checkpoint", "box"],
        &["restore", "box"],
        &["overhead"],
        &["template", "list"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_rvm"))
            .arg("--root")
            .arg(dir.path().join("root"))
            .arg("--debug")
            .args(args)
            .output()
            .unwrap();
        let messages = String::from_utf8(output.stderr).unwrap();
        let begins = format!("debug: rvm {}: version ", args[0]);
        assert!(messages.contains(&begins), "{args:?}: {messages}");
        let ends = format!("debug: rvm {} ended after ", args[0]);
        assert!(messages.contains(&ends), "{args:?}: {messages}");
    }
}
