//! What file operations cost, as a program sees it: elapsed nanoseconds of each, on the standard
//! output, one line an operation.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::io::Errno;

/// Small files of one directory.
const FILES: usize = 60;

/// Directories of the tree that is walked, with ten files each.
const TREE_DIRS: usize = 10;

const SYNCED_WRITES: usize = 20;

const CHUNK: usize = 1 << 20;

/// Prints `name: nanoseconds` for each operation in `dir`, which has no files of its names yet.
/// Sequential figures are those of a MiB of a file of `mib`. The caller may write to
/// /proc/sys/vm/drop_caches.
pub fn measure(dir: &Path, mib: usize) -> io::Result<()> {
    small_files(&dir.join("small"))?;
    tree(&dir.join("tree"))?;
    sequential(&dir.join("large"), mib)?;
    synced_writes(&dir.join("journal"))
}

fn small_files(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)?;
    let names: Vec<PathBuf> = (0..FILES).map(|i| dir.join(format!("file{i}"))).collect();
    let missing: Vec<PathBuf> = (0..FILES)
        .map(|i| dir.join(format!("none{}", i % 10)))
        .collect();
    let read = |path: &PathBuf| -> io::Result<()> {
        let mut text = [0; 256];
        File::open(path)?.read(&mut text).map(drop)
    };
    // std's metadata() asks for the time of birth, too.
    let stat = |path: &PathBuf| rustix::fs::lstat(path).map(drop);
    each("create, write, close", &names, |path| {
        File::create(path)?.write_all(&[b'x'; 100])
    })?;
    each("open, read, close, just written", &names, read)?;
    settle();
    each("open, read, close, first again", &names, read)?;
    each("open, read, close, warm", &names, read)?;
    each("stat, warm", &names, |path| Ok(stat(path)?))?;
    each("stat of a missing name", &missing, |path| {
        match stat(path) {
            Err(Errno::NOENT) => Ok(()),
            other => Ok(other?),
        }
    })?;
    drop_caches()?;
    each("stat, cold", &names, |path| Ok(stat(path)?))?;
    drop_caches()?;
    each("open, read, close, cold", &names, read)?;
    each("unlink", &names, |path| fs::remove_file(path))
}

fn tree(dir: &Path) -> io::Result<()> {
    for i in 0..TREE_DIRS {
        let sub = dir.join(format!("dir{i}"));
        fs::create_dir_all(&sub)?;
        for j in 0..10 {
            File::create(sub.join(format!("file{j}")))?;
        }
    }
    let entries = TREE_DIRS * 11;
    drop_caches()?;
    timed("walk with stat, cold, an entry", entries, || walk(dir))?;
    timed("walk with stat, warm, an entry", entries, || walk(dir))
}

fn walk(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.metadata()?.is_dir() {
            walk(&entry.path())?;
        }
    }
    Ok(())
}

/// Of a MiB of a file of `mib`, which is gone afterwards.
pub fn sequential(path: &Path, mib: usize) -> io::Result<()> {
    let mut chunk = vec![b'x'; CHUNK];
    timed("write and sync, a MiB", mib, || {
        let mut file = File::create(path)?;
        (0..mib).try_for_each(|_| file.write_all(&chunk))?;
        file.sync_all()
    })?;
    settle();
    for name in ["read, cold, a MiB", "read, warm, a MiB"] {
        if name.contains("cold") {
            drop_caches()?;
        }
        timed(name, mib, || {
            let mut file = File::open(path)?;
            (0..mib).try_for_each(|_| file.read_exact(&mut chunk))
        })?;
    }
    fs::remove_file(path)
}

fn synced_writes(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    timed("write and sync of 4 KiB", SYNCED_WRITES, || {
        for _ in 0..SYNCED_WRITES {
            file.write_all(&[b'x'; 4096])?;
            file.sync_data()?;
        }
        Ok(())
    })
}

fn each(
    name: &str,
    paths: &[PathBuf],
    operation: impl Fn(&PathBuf) -> io::Result<()>,
) -> io::Result<()> {
    timed(name, paths.len(), || paths.iter().try_for_each(operation))
}

pub fn timed(name: &str, times: usize, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let start = Instant::now();
    work()?;
    let nanoseconds = start.elapsed().as_nanos() / times as u128;
    println!("{name}: {nanoseconds}");
    Ok(())
}

/// What was written moments ago may be treated with more care.
pub fn settle() {
    std::thread::sleep(std::time::Duration::from_secs(5));
}

pub fn drop_caches() -> io::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3")
}
