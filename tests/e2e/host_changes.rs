//! Changes by the host to a running container's files.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rvm_tests::command::eventually;
use rvm_tests::{Bundle, Finished, Rvm, bind};
use serde_json::json;

/// A change older than this shows in the file's times.
const SETTLED: Duration = Duration::from_secs(5);

/// The output of a program, which must have succeeded.
fn output(finished: Finished) -> String {
    assert_eq!(finished.code, 0, "{}{}", finished.stdout, finished.stderr);
    finished.stdout
}

#[test]
fn what_the_host_mounts_later_reaches_a_volume_that_follows_it() {
    let rvm = Rvm::new();
    let volume = rvm.path("volume");
    fs::create_dir_all(volume.join("later")).unwrap();
    let flags = rustix::mount::MountPropagationFlags::SHARED;
    rustix::mount::mount_bind(&volume, &volume).unwrap();
    rustix::mount::mount_change(&volume, flags).unwrap();
    let command = "until [ -e /v/later/file ]; do sleep 0.1; done; cat /v/later/file";
    let bundle = Bundle::shell(command).mount(bind(&volume, "/v", &["rbind", "rslave"]));
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    let none = rustix::mount::MountFlags::empty();
    rustix::mount::mount("later", volume.join("later"), "tmpfs", none, None).unwrap();
    fs::write(volume.join("later/file"), "text\n").unwrap();
    rvm.wait_for_status("box", "stopped");
    rvm.ok(&["delete", "box"]);
    for path in [volume.join("later"), volume] {
        rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

fn append(path: &Path, text: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[test]
fn what_the_host_does_to_a_file_that_stays_open_or_mounted_is_read() {
    let rvm = Rvm::new();
    let dir = tempfile::tempdir().unwrap();
    let [file, tool, log] = ["f", "t", "log"].map(|name| dir.path().join(name));
    fs::write(&file, "").unwrap();
    fs::write(&log, "").unwrap();
    fs::copy("/bin/busybox", &tool).unwrap();
    let bundle = Bundle::shell("exec tail -f /d/log >/d/seen")
        .mount(bind(&file, "/etc/file", &["rbind"]))
        .mount(bind(&tool, "/opt/busybox", &["rbind", "ro"]))
        .mount(bind(dir.path(), "/d", &["rbind"]));
    rvm.create(&bundle, "box");
    let shell = |script: &str| output(rvm.call(&["exec", "box", "sh", "-c", script]));
    // Written as Podman does; then shorter, at once of the same length, and longer.
    for text in [
        "192.0.2.1 box\n",
        "short\n",
        "other\n",
        "and longer again\n",
    ] {
        fs::write(&file, text).unwrap();
        if text.starts_with("192") {
            rvm.ok(&["start", "box"]);
        }
        assert_eq!(shell("cat /etc/file"), text);
        let length = format!("{}\n", text.len());
        assert_eq!(shell("stat -c %s /etc/file"), length);
    }
    // Host and guest write, and nothing is lost. A program stays mapped after a change.
    shell("echo guest >>/etc/file");
    append(&file, "host\n");
    let whole = "and longer again\nguest\nhost\n";
    assert_eq!(shell("cat /etc/file"), whole);
    assert_eq!(shell("/opt/busybox echo runs"), "runs\n");
    append(&tool, "more");
    let length = fs::metadata(&tool).unwrap().len();
    let run = "/opt/busybox echo runs; wc -c </opt/busybox";
    assert_eq!(shell(run), format!("runs\n{length}\n"));
    // Nobody opens it again.
    let mut told = String::new();
    for line in ["first\n", "second\n"] {
        append(&log, line);
        told += line;
        eventually(&format!("{line:?} is told"), || {
            shell("cat /d/seen") == told
        });
    }
    rvm.ok(&["delete", "--force", "box"]);
}

/// By sendfile(2), which busybox's cat uses, within the lifetime of a size.
#[test]
fn what_the_host_appends_is_sent_from_a_file_that_stays_open() {
    let rvm = Rvm::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "first\n").unwrap();
    let script = "exec 3</d/f; cat <&3; read line; sleep 1.5; cat <&3";
    let bundle = Bundle::shell(script).mount(bind(dir.path(), "/d", &["rbind"]));
    let mut child = rvm.spawn_piped(&bundle, "box");
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "first\n");
    append(&file, "second\n");
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "second\n");
    assert!(child.wait().unwrap().success());
}

/// The files were read before and have not changed for long, so the guest may use its cache.
#[test]
fn what_the_host_writes_is_read_by_the_next_open() {
    let rvm = Rvm::new();
    let dir = tempfile::tempdir().unwrap();
    let (file, twin) = (dir.path().join("f"), dir.path().join("g"));
    fs::write(&file, "text 0\n").unwrap();
    fs::write(&twin, "text 0\n").unwrap();
    let bundle = Bundle::shell("sleep 1000")
        .mount(bind(dir.path(), "/d", &["rbind"]))
        .mount(bind(&twin, "/etc/file", &["rbind"]));
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    let read = || {
        let script = "cat /d/f /etc/file; cat /d/f /etc/file";
        output(rvm.call(&["exec", "box", "sh", "-c", script]))
    };
    std::thread::sleep(SETTLED);
    assert_eq!(read(), "text 0\n".repeat(4));
    // At once, of the same length, and soon after another change.
    for text in ["text 1\n", "text 2\n"] {
        rewrite(&file, text);
        rewrite(&twin, text);
        assert_eq!(read(), text.repeat(4));
    }
    rvm.ok(&["delete", "--force", "box"]);
}

/// The guest opens a file without a message when its cache is the file's content. Each change is
/// made known to the container in another way, and the very next open has it.
#[test]
fn what_the_host_writes_is_read_by_the_next_open_of_a_file_that_is_opened_all_the_time() {
    let rvm = Rvm::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "text 000\n").unwrap();
    // Two opens fill the cache; the third comes after the change.
    let script = "while read word; do read x </d/f; read x </d/f; echo $word; \
                  read word; read x </d/f; echo $x; done";
    let bundle = Bundle::shell(script).mount(bind(dir.path(), "/d", &["rbind"]));
    let mut child = rvm.spawn_piped(&bundle, "box");
    let mut words = child.stdin.take().unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut say = |word: &str| {
        writeln!(words, "{word}").unwrap();
        said.next().unwrap().unwrap()
    };
    for round in 1..=40 {
        // Long enough for the file to count as unchanged.
        std::thread::sleep(Duration::from_millis(150));
        assert_eq!(say("read"), "read");
        let text = format!("text {round:03}");
        match round % 4 {
            0 => fs::write(&file, format!("{text}\n")).unwrap(),
            1 => rewrite(&file, &format!("{text}\n")),
            2 => {
                let open = fs::File::options().write(true).open(&file).unwrap();
                open.write_all_at(text.as_bytes(), 0).unwrap();
            }
            _ => {
                fs::write(dir.path().join("new"), format!("{text}\n")).unwrap();
                fs::copy(dir.path().join("new"), &file).unwrap();
            }
        }
        assert_eq!(say("and"), text);
    }
    drop(words);
    assert!(child.wait().unwrap().success());
}

/// On kvm the first mount namespace to meet a mount of the host has its own pages of the files
/// there.
#[test]
fn what_the_host_writes_is_read_in_every_mount_namespace() {
    let rvm = Rvm::new();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("mount")).unwrap();
    let none = rustix::mount::MountFlags::empty();
    rustix::mount::mount("inner", path("mount"), "tmpfs", none, None).unwrap();
    fs::write(path("mount/f"), "text 0\n").unwrap();
    let other = "cat mount/f; : >read; until [ -e go ]; do sleep 0.1; done; cat mount/f";
    let command = format!("cd /d; unshare -m sh -c '{other}' >said; true");
    let bundle = Bundle::shell(&command)
        .mount(bind(dir.path(), "/d", &["rbind"]))
        .capabilities(&["CAP_SYS_ADMIN"]);
    std::thread::sleep(SETTLED);
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    eventually("the other has read", || path("read").exists());
    let read = || {
        let script = "cat /d/mount/f; cat /d/mount/f";
        output(rvm.call(&["exec", "box", "sh", "-c", script]))
    };
    assert_eq!(read(), "text 0\n".repeat(2));
    rewrite(&path("mount/f"), "text 1\n");
    std::thread::sleep(SETTLED);
    assert_eq!(read(), "text 1\n".repeat(2));
    fs::write(path("go"), "").unwrap();
    rvm.wait_for_status("box", "stopped");
    assert_eq!(
        fs::read_to_string(path("said")).unwrap(),
        "text 0\ntext 1\n"
    );
    rvm.ok(&["delete", "box"]);
    rustix::mount::unmount(path("mount"), rustix::mount::UnmountFlags::DETACH).unwrap();
}

/// A program that exits with a code.
struct Exits {
    path: std::path::PathBuf,
}

impl Exits {
    /// The code's place in the file.
    const CODE: u64 = 64 + 56 + 1;

    /// An ELF header, a program header that maps all of the file at 0x400000, and then
    /// `mov edi, 0`, `mov eax, SYS_exit_group`, `syscall`.
    fn new(path: std::path::PathBuf) -> Self {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        for field in [0x40_0078_u64, 64, 0] {
            file.extend(field.to_le_bytes());
        }
        file.extend(b"\0\0\0\0\x40\0\x38\0\x01\0\0\0\0\0\0\0\x01\0\0\0\x05\0\0\0");
        for field in [0, 0x40_0000_u64, 0x40_0000, 132, 132, 0x1000] {
            file.extend(field.to_le_bytes());
        }
        file.extend(b"\xbf\0\0\0\0\xb8\xe7\0\0\0\x0f\x05");
        fs::write(&path, file).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { path }
    }

    /// Changes the code, in the file's place.
    fn change(&self, code: u8) {
        let file = fs::File::options().write(true).open(&self.path).unwrap();
        file.write_all_at(&[code], Self::CODE).unwrap();
    }
}

/// QEMU's software CPU runs a translation of what the page held before, if it has not seen the
/// change of the page.
#[test]
fn a_program_that_the_host_changes_is_run_as_it_is() {
    let rvm = Rvm::new();
    let dir = tempfile::tempdir().unwrap();
    let program = Exits::new(dir.path().join("program"));
    let run = "for out in one two; do \
               while [ ! -e /d/stop ]; do /d/program; echo $?; done >/d/$out & done; wait";
    let bundle = Bundle::shell(run)
        .mount(bind(dir.path(), "/d", &["rbind"]))
        .with(|config| {
            config["linux"]["resources"]["cpu"] = json!({ "quota": 200_000, "period": 100_000 });
        });
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    let outputs = ["one", "two"].map(|name| dir.path().join(name));
    let codes = |path: &Path| -> Vec<u8> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines = text.lines().map(|line| line.parse().unwrap());
        lines.collect()
    };
    for code in 1..=20 {
        program.change(code);
        eventually(&format!("the program exits with {code}"), || {
            (outputs.iter()).all(|path| codes(path).last() == Some(&code))
        });
    }
    fs::write(dir.path().join("stop"), "").unwrap();
    rvm.wait_for_status("box", "stopped");
    assert!(outputs.iter().all(|path| codes(path).is_sorted()));
    rvm.ok(&["delete", "box"]);
}

/// Replaces a file's content and restores its mtime.
fn rewrite(path: &Path, text: &str) {
    let mtime = fs::metadata(path).unwrap().modified().unwrap();
    fs::write(path, text).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(mtime).unwrap();
}
