use std::ffi::CString;
use std::fs;
use std::process::Command;

use virtiofsd::filesystem::{FileSystem, ROOT_ID};
use virtiofsd::passthrough::{Config, PassthroughFs};

use super::super::client::private_mounts;
use super::super::deferred::{Deferred, Origin};
use super::super::nameless::Nameless;
use super::super::xattrs;
use super::events::EVENT_HEADER_BYTES;
use super::*;

const IN_ISDIR: u32 = libc::IN_ISDIR;

/// A directory that is served to a guest.
struct Served {
    dir: tempfile::TempDir,
    fs: Arc<Files>,
    deferred: Deferred,
    watches: Watches,
}

/// The inode, the event, and the name in it.
type Told = (u64, u32, String);

impl Served {
    fn new() -> Self {
        Self::of(tempfile::tempdir().unwrap())
    }

    fn of(dir: tempfile::TempDir) -> Self {
        let fs = PassthroughFs::new(Config {
            root_dir: dir.path().to_str().unwrap().to_owned(),
            ..Config::default()
        })
        .unwrap();
        fs.open_root_node().unwrap();
        let proc_self_fd = File::open("/proc/self/fd").unwrap();
        let nameless = Nameless::new(proc_self_fd, 10, xattrs::map().unwrap());
        let fs = Arc::new(Files::new(fs, nameless));
        Self {
            dir,
            deferred: Deferred::new().unwrap(),
            watches: Watches::new(Arc::clone(&fs)),
            fs,
        }
    }

    fn inode(&self, name: &str) -> u64 {
        let name = CString::new(name).unwrap();
        self.fs
            .lookup(lend::server_itself(), ROOT_ID, &name)
            .unwrap()
            .inode
    }

    fn watch(&mut self, inode: u64) {
        self.watches.watch(inode, what::BEGIN).unwrap();
    }

    /// Changes the directory as another process.
    fn run(&self, script: &str) {
        let mut command = Command::new("sh");
        command.args(["-ec", script]).current_dir(self.dir.path());
        assert!(command.status().unwrap().success());
    }

    fn ask(&mut self) {
        let origin = Origin {
            queue: 1,
            head: 0,
            unique: 0,
        };
        let ticket = self.deferred.keep(origin).unwrap();
        self.watches.wait(ticket);
    }

    fn answers(&mut self) -> Vec<Reply> {
        self.watches.answer();
        let replies = self.deferred.take_replies();
        replies.into_iter().map(|(_, reply)| reply).collect()
    }

    /// The events of one answer, with those cookies that are not 0.
    fn told(&mut self) -> (Vec<Told>, Vec<u32>) {
        if self.watches.waiting.is_none() {
            self.ask();
        }
        let answers = self.answers();
        let answer = match &answers[..] {
            [] => [].as_slice(),
            [answer] => answer.as_ref().unwrap(),
            _ => panic!("more answers than requests"),
        };
        assert!(answer.len() <= ANSWER_BYTES);
        decode(answer)
    }
}

fn decode(mut answer: &[u8]) -> (Vec<Told>, Vec<u32>) {
    let (mut told, mut cookies) = (Vec::new(), Vec::new());
    while !answer.is_empty() {
        let number = |at: usize| u32::from_le_bytes(answer[at..at + 4].try_into().unwrap());
        let node = u64::from_le_bytes(answer[..8].try_into().unwrap());
        let length = number(16) as usize;
        let name = &answer[EVENT_HEADER_BYTES..][..length];
        assert_eq!(answer[EVENT_HEADER_BYTES + length], 0);
        told.push((node, number(8), String::from_utf8(name.to_vec()).unwrap()));
        cookies.extend(Some(number(12)).filter(|&cookie| cookie != 0));
        answer = &answer[(EVENT_HEADER_BYTES + length + 1).next_multiple_of(8)..];
    }
    (told, cookies)
}

fn told(node: u64, mask: u32, name: &str) -> Told {
    (node, mask, name.to_owned())
}

#[test]
fn changes_by_others_are_told_in_their_order() {
    let mut served = Served::new();
    served.watch(ROOT_ID);
    served.run("echo text > file; chmod 600 file; mkdir dir; mv file dir; rm dir/file; rmdir dir");
    assert_eq!(
        served.told().0,
        [
            told(ROOT_ID, libc::IN_CREATE, "file"),
            told(ROOT_ID, libc::IN_MODIFY, "file"),
            told(ROOT_ID, libc::IN_CLOSE_WRITE, "file"),
            told(ROOT_ID, libc::IN_ATTRIB, "file"),
            told(ROOT_ID, libc::IN_CREATE | IN_ISDIR, "dir"),
            told(ROOT_ID, libc::IN_MOVED_FROM, "file"),
            told(ROOT_ID, libc::IN_DELETE | IN_ISDIR, "dir"),
        ]
    );
}

#[test]
fn both_halves_of_a_rename_have_one_cookie() {
    let mut served = Served::new();
    served.run("mkdir dir; touch a b");
    let dir = served.inode("dir");
    served.watch(ROOT_ID);
    served.watch(dir);
    served.run("mv a dir/c; mv b d");
    let (events, cookies) = served.told();
    assert_eq!(
        events,
        [
            told(ROOT_ID, libc::IN_MOVED_FROM, "a"),
            told(dir, libc::IN_MOVED_TO, "c"),
            told(ROOT_ID, libc::IN_MOVED_FROM, "b"),
            told(ROOT_ID, libc::IN_MOVED_TO, "d"),
        ]
    );
    assert!(cookies.len() == 4 && cookies[0] == cookies[1] && cookies[2] == cookies[3]);
    assert_ne!(cookies[0], cookies[2]);
}

#[test]
fn a_watched_file_is_told_of_itself_up_to_its_end() {
    let mut served = Served::new();
    served.run("touch file");
    let file = served.inode("file");
    served.watch(file);
    served.run("echo text >> file");
    assert_eq!(
        served.told().0,
        [
            told(file, libc::IN_MODIFY, ""),
            told(file, libc::IN_CLOSE_WRITE, "")
        ]
    );
    served.run("mv file moved");
    assert_eq!(served.told().0, [told(file, libc::IN_MOVE_SELF, "")]);
    served.run("rm moved");
    assert_eq!(
        served.told().0,
        [
            told(file, libc::IN_ATTRIB, ""),
            told(file, libc::IN_DELETE_SELF, "")
        ]
    );
}

#[test]
fn a_watched_directory_in_a_watched_one_is_told_of_its_end() {
    let mut served = Served::new();
    served.run("mkdir dir");
    let dir = served.inode("dir");
    served.watch(ROOT_ID);
    served.watch(dir);
    served.run("rmdir dir");
    assert_eq!(
        served.told().0,
        [
            told(dir, libc::IN_DELETE_SELF, ""),
            told(ROOT_ID, libc::IN_DELETE | IN_ISDIR, "dir"),
        ]
    );
}

#[test]
fn whether_a_name_was_removed_or_made_last_shows_in_the_order() {
    let mut served = Served::new();
    served.run("touch remade");
    served.watch(ROOT_ID);
    served.run("rm remade; touch remade");
    served.run("touch gone; rm gone");
    let (events, _) = served.told();
    let of = |name| {
        let of_name = events
            .iter()
            .filter(|(_, mask, of)| of == name && mask & (libc::IN_CREATE | libc::IN_DELETE) != 0);
        of_name.map(|(_, mask, _)| *mask).collect::<Vec<_>>()
    };
    assert_eq!(of("remade"), [libc::IN_DELETE, libc::IN_CREATE]);
    assert_eq!(of("gone"), [libc::IN_CREATE, libc::IN_DELETE]);
}

#[test]
fn changes_by_this_process_are_the_guests_and_not_told() {
    let mut served = Served::new();
    served.watch(ROOT_ID);
    fs::write(served.dir.path().join("own"), "text").unwrap();
    fs::rename(
        served.dir.path().join("own"),
        served.dir.path().join("moved"),
    )
    .unwrap();
    served.run("touch theirs");
    let (events, _) = served.told();
    assert!(!events.is_empty());
    assert!(events.iter().all(|(_, _, name)| name == "theirs"));
}

#[test]
fn a_watch_that_ended_is_silent_and_leaves_nothing() {
    let mut served = Served::new();
    served.watch(ROOT_ID);
    served.watches.watch(ROOT_ID, what::END).unwrap();
    served.run("touch file");
    assert_eq!(served.told().0, []);
    assert!(served.watches.objects.is_empty() && served.watches.group.is_none());
    assert_eq!(served.watches.watch(ROOT_ID, what::END), Err(Errno::NOENT));
    // The request that waits is for watches that come later too.
    served.watch(ROOT_ID);
    served.run("mkdir dir");
    assert_eq!(
        served.told().0,
        [told(ROOT_ID, libc::IN_CREATE | IN_ISDIR, "dir")]
    );
}

#[test]
fn one_request_waits_and_is_answered_when_there_are_events_or_none_can_come() {
    let mut served = Served::new();
    served.watch(ROOT_ID);
    served.ask();
    assert_eq!(served.answers(), []);
    served.ask();
    assert_eq!(served.answers(), [Err(Errno::BUSY)]);
    served.run("touch file");
    assert!(matches!(&served.answers()[..], [Ok(answer)] if !answer.is_empty()));
    served.ask();
    served.watches.watch(ROOT_ID, what::STOP).unwrap();
    assert_eq!(served.answers(), [Err(Errno::NOTCONN)]);
    served.ask();
    assert_eq!(served.answers(), [Err(Errno::NOTCONN)]);
    served.watches.reset();
    served.watch(ROOT_ID);
    served.ask();
    assert_eq!(served.answers(), []);
}

#[test]
fn events_beyond_one_answer_come_with_the_next() {
    let mut served = Served::new();
    served.watch(ROOT_ID);
    served.run("for i in $(seq 300); do mkdir directory$i; done");
    let mut names = Vec::new();
    loop {
        let (events, _) = served.told();
        if events.is_empty() {
            break;
        }
        names.extend(events.into_iter().map(|(_, _, name)| name));
    }
    let expected: Vec<String> = (1..=300).map(|i| format!("directory{i}")).collect();
    assert_eq!(names, expected);
}

#[test]
fn every_inode_is_told_once_that_events_were_lost() {
    let mut served = Served::new();
    served.run("mkdir dir");
    let dir = served.inode("dir");
    served.watch(ROOT_ID);
    served.watch(dir);
    let lost = Report {
        mask: libc::FAN_Q_OVERFLOW,
        ..Report::default()
    };
    served.watches.tell(lost, By::Others);
    assert_eq!(
        served.told().0,
        [
            told(ROOT_ID, libc::IN_Q_OVERFLOW, ""),
            told(dir, libc::IN_Q_OVERFLOW, "")
        ]
    );
    assert_eq!(served.told().0, []);
}

#[test]
fn a_guest_that_watches_without_end_is_refused() {
    let mut served = Served::new();
    served.watch(ROOT_ID);
    let node = served.watches.nodes[&ROOT_ID].clone();
    let made_up = (0..MAX_WATCHES as u64 - 1).map(|i| (u64::MAX - i, node.clone()));
    served.watches.nodes.extend(made_up);
    served.run("touch file");
    let file = served.inode("file");
    assert_eq!(served.watches.watch(file, what::BEGIN), Err(Errno::NOSPC));
    // One that it has already takes no more.
    assert_eq!(served.watches.watch(ROOT_ID, what::BEGIN), Ok(Vec::new()));
}

#[test]
fn what_is_no_file_and_what_the_guest_does_not_know_is_refused() {
    let mut served = Served::new();
    served.run("mkfifo fifo");
    let fifo = served.inode("fifo");
    for inode in [fifo, 12_345] {
        assert_eq!(served.watches.watch(inode, what::BEGIN), Err(Errno::BADF));
    }
    assert!(served.watches.group.is_none());
    assert_eq!(served.watches.watch(ROOT_ID, 7), Err(Errno::INVAL));
}

/// Two mounts of one directory below the served one, in a mount namespace of the test's own.
#[test]
fn what_the_guest_changes_by_one_mount_is_told_to_those_who_watch_by_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    std::thread::spawn(move || {
        private_mounts();
        for name in ["volume", "a", "b"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        for name in ["a", "b"] {
            rustix::mount::mount_bind(path.join("volume"), path.join(name)).unwrap();
        }
        let mut served = Served::of(dir);
        let [a, b] = ["a", "b"].map(|name| served.inode(name));
        served.watch(a);
        served.watch(b);
        fs::write(path.join("volume/file"), "text").unwrap();
        served.watches.executed(a);
        let expected = [libc::IN_CREATE, libc::IN_MODIFY, libc::IN_CLOSE_WRITE];
        assert_eq!(
            served.told().0,
            expected.map(|event| told(b, event, "file"))
        );
        // Nobody knows for which request it was.
        fs::remove_file(path.join("volume/file")).unwrap();
        assert_eq!(served.told().0, []);
        served.run("touch volume/theirs");
        let (events, _) = served.told();
        assert!(events.contains(&told(a, libc::IN_CREATE, "theirs")));
        assert!(events.contains(&told(b, libc::IN_CREATE, "theirs")));
    })
    .join()
    .unwrap();
}

#[test]
fn a_guest_that_takes_no_events_makes_few_wait() {
    let mut served = Served::new();
    served.watch(ROOT_ID);
    served.run("for i in $(seq 3000); do : >file$i; done");
    served.watches.executed(ROOT_ID);
    assert!(served.watches.events.is_empty());
    let (events, _) = served.told();
    assert!(events.contains(&told(ROOT_ID, libc::IN_Q_OVERFLOW, "")));
}
