//! Programs that watch shared files, and changes that others make to these.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rvm_tests::command::eventually;
use rvm_tests::{Bundle, Rvm, bind};
use serde_json::json;

/// The program of tests/inside.
const INSIDE: &str = env!("CARGO_BIN_EXE_rvm-inside");

/// The longest time that an event may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// A volume, and a container that watches it at /v, and the file in it.
struct Watched {
    rvm: Rvm,
    dir: tempfile::TempDir,
    /// Of the program.
    bundle: Option<Bundle>,
    /// Lines that were compared.
    seen: usize,
}

impl Watched {
    fn new() -> Self {
        let (rvm, dir) = (Rvm::new(), tempfile::tempdir().unwrap());
        for name in ["volume", "out", "log"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("volume/file"), "").unwrap();
        Self {
            rvm,
            dir,
            bundle: None,
            seen: 0,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mounted(&self, bundle: Bundle) -> Bundle {
        bundle
            .mount(bind(&self.path("volume"), "/v", &["bind"]))
            .mount(bind(&self.path("log"), "/log", &["bind"]))
            .mount(bind(Path::new(INSIDE), "/inside", &["bind", "ro"]))
    }

    fn start(&mut self, bundle: Bundle) {
        let bundle = self.mounted(bundle);
        self.rvm.create(&bundle, "watcher");
        self.bundle = Some(bundle);
        self.rvm.ok(&["start", "watcher"]);
        self.told(&["ready"]);
    }

    /// The program prints these lines next.
    fn told(&mut self, expected: &[&str]) {
        let started = Instant::now();
        let log = loop {
            let log = fs::read_to_string(self.path("log/told")).unwrap_or_default();
            let lines = log.lines().count() - self.seen;
            if lines >= expected.len() || started.elapsed() > LIMIT {
                break log;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(log.lines().skip(self.seen).collect::<Vec<_>>(), expected);
        self.seen += expected.len();
    }
}

const PROGRAM: &str = "exec /inside changes /v /v/file >/log/told";

fn append(path: &Path, text: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
}

#[test]
fn what_the_host_changes_is_told_and_seen_at_once() {
    let mut watched = Watched::new();
    watched.start(Bundle::shell(PROGRAM));
    let [new, moved, back, out, dir, file] = [
        "volume/new",
        "volume/moved",
        "volume/back",
        "out/moved",
        "volume/dir",
        "volume/file",
    ]
    .map(|name| watched.path(name));
    fs::write(&new, "text").unwrap();
    watched.told(&["0 CREATE new", "0 MODIFY new", "0 CLOSE_WRITE new 4 644"]);
    append(&new, "more");
    watched.told(&["0 MODIFY new", "0 CLOSE_WRITE new 8 644"]);
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    watched.told(&["0 ATTRIB new 8 600"]);
    fs::rename(&new, &moved).unwrap();
    watched.told(&["0 MOVED_FROM new gone", "0 MOVED_TO moved paired 8 600"]);
    fs::rename(&moved, &out).unwrap();
    watched.told(&["0 MOVED_FROM moved gone"]);
    fs::rename(&out, &back).unwrap();
    watched.told(&["0 MOVED_TO back 8 600"]);
    fs::create_dir(&dir).unwrap();
    watched.told(&["0 CREATE|ISDIR dir"]);
    // Nobody watches what is in it.
    fs::write(dir.join("file"), "").unwrap();
    fs::remove_file(dir.join("file")).unwrap();
    fs::remove_dir(&dir).unwrap();
    watched.told(&["0 DELETE|ISDIR dir gone"]);
    append(&file, "text");
    watched.told(&[
        "0 MODIFY file",
        "1 MODIFY",
        "0 CLOSE_WRITE file 4 644",
        "1 CLOSE_WRITE",
    ]);
    fs::remove_file(&file).unwrap();
    watched.told(&[
        "1 ATTRIB",
        "1 DELETE_SELF",
        "1 IGNORED",
        "0 DELETE file gone",
    ]);
    watched.rvm.ok(&["delete", "--force", "watcher"]);
}

#[test]
fn what_containers_change_is_told_once_in_each() {
    let mut watched = Watched::new();
    watched.start(Bundle::shell(PROGRAM));
    let told = ["0 CREATE new", "0 MODIFY new", "0 CLOSE_WRITE new 5 644"];
    let script = "echo text >/v/new; sleep 4; rm /v/new";
    // In a machine of its own.
    let other = watched.mounted(Bundle::shell(script));
    assert_eq!(watched.rvm.run(&other, "other").code, 0);
    watched.told(&[&told[..], &["0 DELETE new gone"]].concat());
    // In the same container.
    let exec = ["exec", "watcher", "sh", "-c", script];
    assert_eq!(watched.rvm.call(&exec).code, 0);
    fs::write(watched.path("volume/end"), "").unwrap();
    eventually("the last change is told", || {
        let log = fs::read_to_string(watched.path("log/told")).unwrap();
        log.contains("CLOSE_WRITE end")
    });
    let log = fs::read_to_string(watched.path("log/told")).unwrap();
    let lines = log.lines().skip(watched.seen);
    let words = lines.map(|line| line.split(' ').collect::<Vec<_>>());
    let events = words.filter(|words| words[2] == "new");
    assert_eq!(
        events.map(|words| words[1].to_owned()).collect::<Vec<_>>(),
        ["CREATE", "MODIFY", "CLOSE_WRITE", "DELETE"]
    );
    watched.rvm.ok(&["delete", "--force", "watcher"]);
}

#[test]
fn what_a_container_of_the_pod_changes_is_told_once() {
    let mut watched = Watched::new();
    let annotate = |bundle: Bundle, kind: &str| {
        bundle.with(|config| {
            config["annotations"] = json!({
                "io.kubernetes.cri.container-type": kind,
                "io.kubernetes.cri.sandbox-id": "watcher",
            });
        })
    };
    watched.start(annotate(Bundle::shell(PROGRAM), "sandbox"));
    let script = "echo text >/v/new; sleep 4; mv /v/new /v/moved";
    let other = watched.mounted(annotate(Bundle::shell(script), "container"));
    let ended = watched.rvm.run(&other, "other");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    watched.told(&[
        "0 CREATE new",
        "0 MODIFY new",
        "0 CLOSE_WRITE new 5 644",
        "0 MOVED_FROM new gone",
        "0 MOVED_TO moved paired 5 644",
    ]);
    watched.rvm.ok(&["delete", "--force", "watcher"]);
}
