//! The store, and making templates with a script in rvm-vmm's place. What rvm-vmm writes does not
//! matter here.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rvm_protocol::vmm::{Channel, Event, PageRun};

use super::key::tests::{config, kind};
use super::*;

const SIZE: u64 = 584;

/// A directory with the files of an installation, whose rvm-vmm is a script, and its configuration.
struct Installation {
    dir: tempfile::TempDir,
    config: Config,
}

impl Installation {
    /// With an rvm-vmm that saves the machine.
    fn new() -> Self {
        Self::that_saves_after("")
    }

    /// With an rvm-vmm that runs this script and then saves the machine.
    fn that_saves_after(script: &str) -> Self {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&Event::TemplateSaved, &[]).unwrap();
        let mut packet = [0; 256];
        let (length, _) = rustix::net::recv(
            theirs.into_fd(),
            &mut packet,
            rustix::net::RecvFlags::empty(),
        )
        .unwrap();
        let packet = std::str::from_utf8(&packet[..length]).unwrap();
        Self::with_script(&format!(
            "{script}\nprintf '%s' '{packet}' >&0; exec /bin/sleep 1000"
        ))
    }

    /// With an rvm-vmm that runs this script once it has its configuration. It counts its starts.
    fn with_script(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let starts = dir.path().join("starts");
        let receive = "/bin/dd bs=64k count=1 of=/dev/null 2>/dev/null";
        let starts = starts.display();
        let script = format!("#!/bin/sh\necho $1 >>{starts}\n{receive}\n{script}\n");
        let host = Self { dir, config };
        host.install(&script);
        host
    }

    /// Writes the script. Another process does: a child of another test that inherits the open file
    /// would keep it from being executed.
    fn install(&self, script: &str) {
        let write = "printf %s \"$1\" >\"$0\" && chmod 755 \"$0\"";
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", write]).arg(&self.config.vmm).arg(script);
        assert!(shell.status().unwrap().success());
    }

    /// How often rvm-vmm was started.
    fn starts(&self) -> usize {
        let starts = fs::read_to_string(self.dir.path().join("starts")).unwrap_or_default();
        assert!(starts.lines().all(|mode| mode == "template"), "{starts}");
        starts.lines().count()
    }

    fn store(&self) -> Store {
        Store::create(&self.config.template_dir).unwrap()
    }

    fn templates(&self) -> Templates<'_> {
        Templates {
            config: &self.config,
            open_kvm: || Ok(fs::File::open("/dev/null").unwrap()),
        }
    }

    async fn prepare(&self, memory_mib: u64) -> Option<Arc<Template>> {
        let size = Size {
            vcpus: 1,
            memory_mib,
        };
        let timings = &mut Timings::default();
        self.templates()
            .prepare(size, size, 0, timings)
            .await
            .template
    }

    /// The names in the directory of templates, sorted, without the lock.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.config.template_dir).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "lock").collect();
        names.sort();
        names
    }

    /// Has all templates be last used an hour earlier.
    fn age(&self) {
        for name in self.names() {
            let dir = fs::File::open(self.config.template_dir.join(name)).unwrap();
            let used = dir.metadata().unwrap().modified().unwrap();
            dir.set_modified(used - Duration::from_secs(3600)).unwrap();
        }
    }

    /// The directory of the only template.
    fn only(&self) -> PathBuf {
        let names = self.names();
        assert_eq!(names.len(), 1, "{names:?}");
        self.config.template_dir.join(&names[0])
    }
}

#[tokio::test]
async fn the_first_start_of_a_kind_makes_a_template_and_the_others_find_it() {
    let host = Installation::new();
    let first = host.prepare(SIZE).await.unwrap();
    let second = host.prepare(SIZE).await.unwrap();
    assert_eq!(host.starts(), 1);
    assert_eq!(first.files().map(|files| files.len()), Some(2));
    assert!(second.files().is_some());
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let template = host.only();
    assert_eq!(mode(&host.config.template_dir), 0o700);
    assert_eq!(mode(&template), 0o700);
    let mut files: Vec<_> = fs::read_dir(&template)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert_eq!(
        files,
        ["key", "memory", "state"].map(|name| template.join(name))
    );
    assert!(files.iter().all(|file| mode(file) == 0o600));
    let listed = host.templates().list().unwrap();
    assert_eq!(
        (listed[0].size.memory_mib, listed[0].is_current),
        (SIZE, true)
    );
}

#[tokio::test]
async fn a_template_that_cannot_be_made_is_tried_once() {
    let host = Installation::with_script("echo ERROR no KVM >&2; exit 7");
    assert!(host.prepare(SIZE).await.is_none());
    assert!(host.prepare(SIZE).await.is_none());
    assert_eq!(host.starts(), 1);
    let note = fs::read_to_string(host.only()).unwrap();
    assert!(
        note.contains("no KVM") && note.contains("status 7"),
        "{note}"
    );
    // Another kind may work.
    assert!(host.prepare(2 * SIZE).await.is_none());
    assert_eq!(host.starts(), 2);
    // An upgrade may, too.
    let vmm = fs::read_to_string(&host.config.vmm).unwrap();
    host.install(&(vmm + "# upgraded\n"));
    assert!(host.prepare(SIZE).await.is_none());
    assert_eq!(host.starts(), 3);
    assert_eq!(
        host.names().len(),
        1,
        "what was said of the old one is gone"
    );
}

#[tokio::test]
async fn a_template_that_cannot_be_opened_once_it_is_made_is_tried_once() {
    let spoil = "/bin/chmod 666 \"${0%/*}\"/templates/*.new/memory";
    let host = Installation::that_saves_after(spoil);
    assert!(host.prepare(SIZE).await.is_none());
    assert!(host.prepare(SIZE).await.is_none());
    assert_eq!(host.starts(), 1);
}

#[tokio::test]
async fn a_machine_that_is_not_ready_in_time_is_killed() {
    let mut host = Installation::with_script("exec /bin/sleep 1000");
    host.config.start_timeout = Some(Duration::from_millis(200));
    let begun = Instant::now();
    assert!(host.prepare(SIZE).await.is_none());
    assert!(begun.elapsed() < Duration::from_secs(20));
    let note = fs::read_to_string(host.only()).unwrap();
    assert!(note.contains("not ready"), "{note}");
}

#[tokio::test]
async fn a_start_that_is_interrupted_leaves_nothing_and_the_next_makes_the_template() {
    let host = Installation::with_script("exec /bin/sleep 1000");
    let limit = Duration::from_millis(300);
    assert!(
        tokio::time::timeout(limit, host.prepare(SIZE))
            .await
            .is_err()
    );
    assert_eq!(host.names(), [""; 0]);
    let lock = host.store().lock(false).unwrap();
    assert!(lock.is_some(), "it is free again");
}

#[tokio::test]
async fn while_another_process_makes_one_a_start_goes_without() {
    let host = Installation::new();
    let lock = host.store().lock(false).unwrap().unwrap();
    assert!(host.prepare(SIZE).await.is_none());
    assert_eq!(host.starts(), 0);
    drop(lock);
    assert!(host.prepare(SIZE).await.is_some());
}

#[tokio::test]
async fn what_a_killed_maker_has_left_is_removed() {
    let host = Installation::new();
    let store = host.store();
    let (own, other) = (kind(&host.config, SIZE), kind(&host.config, 1));
    for kind in [&own, &other] {
        let lock = store.lock(false).unwrap().unwrap();
        let draft = store::Draft::new(&store, kind, &lock).unwrap();
        fs::write(draft.path("shared").join("file"), "x").unwrap();
        std::mem::forget(draft);
    }
    assert_eq!(host.names().len(), 2);
    assert!(host.prepare(SIZE).await.is_some());
    assert!(!host.only().to_str().unwrap().ends_with(".new"));
}

#[tokio::test]
async fn those_that_were_not_used_for_longest_are_removed() {
    let mut host = Installation::new();
    host.config.max_templates = 2;
    let oldest = host.prepare(1).await.unwrap();
    let used = host.prepare(2).await.unwrap();
    drop(used);
    let pause = Duration::from_millis(20);
    tokio::time::sleep(pause).await;
    drop(host.prepare(1).await.unwrap());
    tokio::time::sleep(pause).await;
    assert!(host.prepare(3).await.is_none(), "both are in use");
    host.age();
    drop(host.prepare(3).await.unwrap());
    let sizes = |host: &Installation| -> Vec<u64> {
        let list = host.templates().list().unwrap();
        list.iter().map(|it| it.size.memory_mib).collect()
    };
    assert_eq!(sizes(&host), [3, 1]);
    // Whoever has one keeps it.
    host.config.max_templates = 1;
    host.age();
    host.prepare(4).await.unwrap();
    assert_eq!(sizes(&host), [4]);
    assert!(oldest.files().is_some());
}

#[tokio::test]
async fn one_of_files_that_are_no_longer_installed_is_stale_and_goes() {
    let host = Installation::new();
    host.prepare(SIZE).await.unwrap();
    fs::write(&host.config.kernel, "\x7fELF upgraded").unwrap();
    assert!(!host.templates().list().unwrap()[0].is_current);
    host.prepare(SIZE).await.unwrap();
    assert_eq!(host.starts(), 2);
    let left = host.templates().list().unwrap();
    assert!(left.len() == 1 && left[0].is_current);
}

#[tokio::test]
async fn what_is_damaged_is_made_again() {
    let damages: [fn(&Path); 4] = [
        |template| fs::remove_file(template.join("memory")).unwrap(),
        |template| fs::remove_file(template.join("key")).unwrap(),
        |template| fs::write(template.join("key"), "{}").unwrap(),
        |template| {
            fs::remove_file(template.join("state")).unwrap();
            fs::create_dir(template.join("state")).unwrap();
        },
    ];
    for damage in damages {
        let host = Installation::new();
        host.prepare(SIZE).await.unwrap();
        damage(&host.only());
        assert!(host.prepare(SIZE).await.is_some());
        assert_eq!(host.starts(), 2);
    }
}

#[tokio::test]
async fn what_others_than_root_can_write_is_no_template() {
    let tamperings: [fn(&Path); 6] = [
        |template| chown(template, Some(65534), None).unwrap(),
        |template| chown(template.join("state"), Some(65534), None).unwrap(),
        |template| fs::set_permissions(template, fs::Permissions::from_mode(0o777)).unwrap(),
        |template| {
            let mode = fs::Permissions::from_mode(0o620);
            fs::set_permissions(template.join("memory"), mode).unwrap();
        },
        |template| {
            let memory = template.join("memory");
            fs::rename(&memory, template.join("moved")).unwrap();
            symlink("moved", memory).unwrap();
        },
        |template| {
            let moved = template.parent().unwrap().parent().unwrap().join("moved");
            fs::rename(template, &moved).unwrap();
            symlink(moved, template).unwrap();
        },
    ];
    for tamper in tamperings {
        let host = Installation::new();
        host.prepare(SIZE).await.unwrap();
        tamper(&host.only());
        let found = host.store().find(&kind_of(&host));
        assert!(found.is_err());
        assert!(host.prepare(SIZE).await.is_some(), "another is made");
        assert_eq!(host.starts(), 2);
    }
}

/// The kind that [`Installation::prepare`] looks for.
fn kind_of(host: &Installation) -> Kind {
    let size = Size {
        vcpus: 1,
        memory_mib: SIZE,
    };
    host.templates().kind(size, size, 0).unwrap()
}

#[tokio::test]
async fn a_directory_that_others_can_write_is_refused() {
    let host = Installation::new();
    let dir = &host.config.template_dir;
    fs::create_dir(dir).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(host.prepare(SIZE).await.is_none());
    let error = chain(&host.templates().list().unwrap_err()).to_string();
    assert!(
        error.contains("template_dir") && error.contains("root"),
        "{error}"
    );
    fs::remove_dir(dir).unwrap();
    let elsewhere = host.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, dir).unwrap();
    assert!(host.prepare(SIZE).await.is_none());
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    assert_eq!(host.starts(), 0);
}

#[tokio::test]
async fn a_template_from_which_no_machine_comes_up_is_made_again_once() {
    let host = Installation::new();
    let first = host.prepare(SIZE).await.unwrap();
    let also_first = host.prepare(SIZE).await.unwrap();
    first.discard("checksum");
    assert_eq!(host.templates().list().unwrap(), []);
    let second = host.prepare(SIZE).await.unwrap();
    // It says so of the first, not of the one that has taken its place.
    also_first.discard("checksum");
    assert_eq!(host.templates().list().unwrap().len(), 1);
    assert!(host.prepare(SIZE).await.is_some());
    second.discard("checksum");
    assert!(host.prepare(SIZE).await.is_none());
    assert_eq!(host.starts(), 2);
    // Whoever asks for it gets it all the same, and the starts after that.
    let size = Size {
        vcpus: 1,
        memory_mib: SIZE,
    };
    let created = host.templates().create(size, size, 0).await.unwrap();
    assert!(matches!(created, Created::Made(_)));
    assert!(host.prepare(SIZE).await.is_some());
    let again = host.templates().create(size, size, 0).await.unwrap();
    assert!(matches!(again, Created::Existed(_)));
}

#[tokio::test]
async fn one_is_removed_by_its_id_and_by_nothing_else() {
    let host = Installation::new();
    assert_eq!(host.templates().list().unwrap(), [], "nothing is there yet");
    host.prepare(SIZE).await.unwrap();
    let id = host.templates().list().unwrap().remove(0).id;
    for wrong in ["", ".", "..", "lock", "0123456789abcdef", "../templates"] {
        let error = host.templates().remove(wrong).unwrap_err();
        assert!(
            matches!(error, TemplateError::NotFound(_)),
            "{wrong}: {error}"
        );
    }
    host.templates().remove(&id).unwrap();
    assert_eq!(host.names(), [""; 0]);
    assert!(host.templates().remove(&id).is_err());
    host.prepare(SIZE).await.unwrap();
    host.prepare(1).await.unwrap().discard("checksum");
    assert_eq!(host.names().len(), 2);
    host.templates().remove_all().unwrap();
    assert_eq!(host.names(), [""; 0]);
}

#[tokio::test]
async fn without_room_none_is_made_and_that_is_not_remembered() {
    let host = Installation::new();
    // As page structures would need of the file system alone.
    let huge = 1 << 40;
    assert!(host.prepare(huge).await.is_none());
    assert_eq!((host.starts(), host.names().len()), (0, 0));
    let error = make::check_room(&host.store(), &kind(&host.config, huge)).unwrap_err();
    assert!(error.to_string().contains("MiB"), "{error}");
}

#[tokio::test]
#[expect(unsafe_code, reason = "mmap")]
async fn what_the_first_machine_has_written_to_is_noted_and_found() {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    const PAGES: usize = 600;

    let host = Installation::new();
    let template = host.prepare(SIZE).await.unwrap();
    assert_eq!(template.written(), None);
    // This process is the machine.
    let memory = host.only().join("memory");
    let file = fs::File::options().write(true).open(memory).unwrap();
    file.set_len(PAGES as u64 * 4096).unwrap();
    let [_, mapped] = template.files().unwrap();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: nothing else is at the place that the kernel chooses.
    let start = unsafe {
        let anywhere = std::ptr::null_mut();
        mmap(
            anywhere,
            PAGES * 4096,
            access,
            MapFlags::PRIVATE,
            &mapped,
            0,
        )
        .unwrap()
    };
    for page in [0, 1, 7, 511, 512] {
        // SAFETY: the page is mapped, and nobody else uses it.
        unsafe { start.cast::<u8>().add(page * 4096).write_volatile(1) };
    }
    let own = rustix::process::getpid().as_raw_nonzero().get();
    template.note_written(own).unwrap();
    let expected = [(0, 2), (7, 1), (511, 1), (512, 1)];
    let expected = expected.map(|(first, count)| PageRun(first, count));
    let noted = host.prepare(SIZE).await.unwrap();
    assert_eq!(noted.written(), Some(&expected[..]));
    // A second machine that began as early changes nothing.
    // SAFETY: as above.
    unsafe { start.cast::<u8>().add(9 * 4096).write_volatile(1) };
    template.note_written(own).unwrap();
    assert_eq!(
        host.prepare(SIZE).await.unwrap().written(),
        Some(&expected[..])
    );

    template.discard("a test");
    assert!(host.names().iter().all(|name| name.ends_with(".failed")));
}
