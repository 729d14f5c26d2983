//! Standard input.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rvm_tests::command::{self, eventually};
use rvm_tests::{Bundle, Rvm};

use super::{end, save, start, wait_until_running, world};

#[test]
fn input_and_the_exit_code_are_those_of_the_restored() {
    let Some(rvm) = world() else { return };
    let script = "while read line; do echo got $line; done; echo end; exit 7";
    let bundle = Bundle::shell(script);
    let image = rvm.path("image");
    let mut first = rvm.spawn_piped(&bundle, "box");
    let mut input = first.stdin.take().unwrap();
    input.write_all(b"one\n").unwrap();
    wait_until_running(&rvm);
    save(&rvm, "box", &image, &["--leave-running"]);
    drop(input);
    let ended = command::wait(first);
    assert_eq!(ended.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "got one\nend\n");
    for text in ["two\nthree\n", ""] {
        let child = in_foreground(&rvm, &bundle, &image);
        let (code, output) = talk(child, text);
        assert_eq!(code, Some(7));
        let lines: String = text.lines().map(|line| format!("got {line}\n")).collect();
        assert!(output.ends_with(&format!("{lines}end\n")), "{output}");
    }
}

#[test]
fn input_that_comes_after_the_checkpoint_is_the_next_readers() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell("while read line; do echo got $line; done");
    let (image, fifo) = (rvm.path("image"), rvm.path("fifo"));
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    // It does not end with its writers.
    let open = || File::options().read(true).write(true).open(&fifo).unwrap();
    let mut input = open();
    let mut expected = String::new();
    let mut seen = String::new();
    for round in 0..3 {
        let mut command = match round {
            0 => rvm.command(&["run", "--bundle"]),
            _ => rvm.command(&[
                "restore",
                "--image-path",
                image.to_str().unwrap(),
                "--bundle",
            ]),
        };
        command.arg(bundle.write()).arg("box");
        let child = command.stdin(open()).stdout(Stdio::piped()).spawn();
        wait_until_running(&rvm);
        input.write_all(format!("{round}\n").as_bytes()).unwrap();
        expected += &format!("got {round}\n");
        save(&rvm, "box", &image, &[]);
        input
            .write_all(format!("late {round}\n").as_bytes())
            .unwrap();
        expected += &format!("got late {round}\n");
        seen += &String::from_utf8_lossy(&command::wait(child.unwrap()).stdout);
    }
    let output = rvm.path("last");
    let mut command = rvm.command(&["restore", "--image-path", image.to_str().unwrap()]);
    command
        .args(["--detach", "--bundle"])
        .arg(bundle.write())
        .arg("box");
    let file = File::create(&output).unwrap();
    let child = command.stdin(open()).stdout(file).spawn().unwrap();
    assert!(command::wait(child).status.success());
    eventually("all of the input", || {
        let last = fs::read_to_string(&output).unwrap();
        format!("{seen}{last}") == expected
    });
    end(&rvm, "box");
}

fn in_foreground(rvm: &Rvm, bundle: &Bundle, image: &Path) -> Child {
    let mut restore = rvm.command(&["restore", "--image-path"]);
    restore
        .arg(image)
        .arg("--bundle")
        .arg(bundle.write())
        .arg("box");
    let piped = restore.stdin(Stdio::piped()).stdout(Stdio::piped());
    piped.spawn().unwrap()
}

/// Writes all input; returns the exit code and the output.
fn talk(mut child: Child, input: &str) -> (Option<i32>, String) {
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = command::wait(child);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text)
}

#[test]
fn a_container_without_a_terminal_is_not_restored_at_one() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell("sleep 1000");
    let image = rvm.path("image");
    start(&rvm, &bundle, "box");
    save(&rvm, "box", &image, &[]);
    let bundle = bundle.with(|config| config["process"]["terminal"] = true.into());
    let mut arguments = vec![
        "restore",
        "--detach",
        "--console-socket",
        "/nowhere",
        "--bundle",
    ];
    arguments.push(bundle.write().to_str().unwrap());
    arguments.extend(["--image-path", image.to_str().unwrap(), "box"]);
    let refused = rvm.call(&arguments);
    assert_eq!(refused.code, 1);
    let words = "has no terminal in its checkpoint";
    assert!(refused.stderr.contains(words), "{}", refused.stderr);
}
