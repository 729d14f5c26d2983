//! Containers of a pod, of another machine, and the host, which change the same volume at once.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rvm_tests::command::{Finished, eventually, wait};
use rvm_tests::pod::{POD, member, sandbox};
use rvm_tests::{Bundle, Rvm, bind};

/// Replaces `$FILE` by renaming, 12 times, with a text below its checksum.
const REPLACE: &str = "for i in $(seq 12); do text=$(seq $i $((i + 400))); \
                       { echo \"$text\" | md5sum; echo \"$text\"; } >$FILE.$NAME; \
                       mv $FILE.$NAME $FILE; done";

/// Reads `$FILE` again and again, says what does not have its checksum, and how often it read.
const READ: &str = "n=0; until [ -e $DONE ]; do n=$((n + 1)); \
                    { read -r want; got=$(md5sum); } <$FILE; \
                    [ \"$want\" = \"$got\" ] || echo torn; done; echo $n";

fn script(script: &str, dir: &str, name: &str) -> String {
    let script = script.replace("$FILE", &format!("{dir}/file"));
    let script = script.replace("$DONE", &format!("{dir}/done"));
    script.replace("$NAME", name)
}

/// A container that runs, and its bundle.
struct Runs<'a> {
    rvm: &'a Rvm,
    id: &'a str,
    said: std::path::PathBuf,
    _bundle: Bundle,
}

impl<'a> Runs<'a> {
    /// Its output goes to a file of the volume.
    fn start(rvm: &'a Rvm, id: &'a str, bundle: Bundle, volume: &Path) -> Self {
        let bundle = bundle.mount(bind(volume, "/volume", &["rbind"]));
        rvm.create(&bundle, id);
        rvm.ok(&["start", id]);
        Self {
            rvm,
            id,
            said: volume.join(format!("said-{id}")),
            _bundle: bundle,
        }
    }

    /// Waits for its end; what it said.
    fn end(self) -> String {
        self.rvm.wait_for_status(self.id, "stopped");
        self.rvm.ok(&["delete", self.id]);
        fs::read_to_string(self.said).unwrap()
    }
}

fn said(text: &str, id: &str) -> String {
    format!("{{ {text}; }} >/volume/said-{id} 2>&1")
}

#[test]
fn a_file_that_is_replaced_by_rename_is_read_whole() {
    let rvm = Rvm::new();
    let volume = rvm.path("volume");
    fs::create_dir(&volume).unwrap();
    let dir = volume.to_str().unwrap();
    let on_host = |text: &str| {
        let mut sh = Command::new("busybox");
        sh.args(["sh", "-c", &script(text, dir, "host")]);
        sh.stdout(Stdio::piped()).stderr(Stdio::piped());
        sh.spawn().unwrap()
    };
    let first = Finished::from(wait(on_host(&REPLACE.replace("seq 12", "seq 1"))));
    assert_eq!(first.code, 0, "{first:?}");
    let pod = sandbox(&rvm);
    let text = |text, id| said(&script(text, "/volume", id), id);
    let in_pod = |what, id| Runs::start(&rvm, id, member(&rvm, &text(what, id), POD), &volume);
    let readers = [
        in_pod(READ, "reader"),
        Runs::start(&rvm, "other", Bundle::shell(&text(READ, "other")), &volume),
    ];
    let host_reader = on_host(READ);
    let writer = in_pod(REPLACE, "writer");
    let host_writer = Finished::from(wait(on_host(REPLACE)));
    assert_eq!((writer.end().as_str(), host_writer.code), ("", 0));
    fs::write(volume.join("done"), "").unwrap();
    let host_reader = Finished::from(wait(host_reader)).stdout;
    for said in readers.map(Runs::end).into_iter().chain([host_reader]) {
        let times: u32 = said.trim().parse().expect(&said);
        assert!(times > 0, "{said}");
    }
    rvm.ok(&["delete", "--force", "pod"]);
    drop(pod);
}

/// How many lines each writer appends.
const LINES: usize = 100;

#[test]
fn a_log_that_the_host_renames_away_loses_no_line() {
    let rvm = Rvm::new();
    let volume = rvm.path("volume");
    fs::create_dir(&volume).unwrap();
    let log = volume.join("log");
    // One opens the log for each line, as programs do after a rotation, the other keeps it open.
    let each = format!("for i in $(seq {LINES}); do echo each $i >>/volume/log; done");
    let held = format!("exec 3>>/volume/log; for i in $(seq {LINES}); do echo held $i >&3; done");
    let writers = [("each", each), ("held", held)]
        .map(|(id, text)| Runs::start(&rvm, id, Bundle::shell(&said(&text, id)), &volume));
    for number in 1..=LINES {
        if number % 10 == 0 {
            fs::rename(&log, volume.join(format!("log.{:03}", number / 10))).unwrap();
        }
        let mut file = File::options().append(true).create(true).open(&log);
        // In one write, as the others do.
        let line = format!("host {number}\n");
        file.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    for writer in writers {
        assert_eq!(writer.end(), "");
    }
    for writer in ["each", "held", "host"] {
        let mut seen = Vec::new();
        for entry in fs::read_dir(&volume).unwrap() {
            let path = entry.unwrap().path();
            if path
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("log")
            {
                let text = fs::read_to_string(path).unwrap();
                let lines = text.lines().filter_map(|line| line.strip_prefix(writer));
                let numbers: Vec<usize> = lines.map(|n| n.trim().parse().unwrap()).collect();
                assert!(numbers.is_sorted(), "{writer}: {numbers:?}");
                seen.extend(numbers);
            }
        }
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(1..=LINES), "{writer}: {seen:?}");
    }
}

#[test]
fn a_file_that_the_host_replaces_is_the_new_one_within_a_second() {
    /// The second, and what the poll and the machine may take.
    const LIMIT: Duration = Duration::from_secs(5);
    let rvm = Rvm::new();
    let volume = rvm.path("volume");
    fs::create_dir(&volume).unwrap();
    let replace = |text: &str| {
        fs::write(volume.join("new"), text).unwrap();
        fs::rename(volume.join("new"), volume.join("file")).unwrap();
    };
    replace("start\n");
    let script = "until [ \"$text\" = 5 ]; do read -r text <$FILE; echo $text >$FILE.seen; done"
        .replace("$FILE", "/volume/file");
    let reader = Runs::start(&rvm, "box", Bundle::shell(&said(&script, "box")), &volume);
    let seen = || fs::read_to_string(volume.join("file.seen")).unwrap_or_default();
    eventually("the container reads", || seen() == "start\n");
    for round in 1..=5 {
        replace(&format!("{round}\n"));
        let start = Instant::now();
        eventually("it reads the new file", || seen() == format!("{round}\n"));
        assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    }
    assert_eq!(reader.end(), "");
}
