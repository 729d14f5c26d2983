//! What programs cost whose work is with files, in elapsed nanoseconds: one line for each on the
//! standard output. The root file system has Debian's find, git, python3 and tar.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::file_costs::{drop_caches, sequential, settle, timed};

/// How often python starts.
const STARTS: usize = 5;

/// Files that git adds to an empty repository.
const ADDED: usize = 300;

/// Prints how long the first transactions take, and how long one of the others, which find their
/// files and tables as later ones do. Each is written and synced on its own: synchronous is FULL.
const SQLITE: &str = "
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None)
assert database.execute('PRAGMA journal_mode=WAL').fetchone() == ('wal',)
database.execute('CREATE TABLE pairs (key INTEGER PRIMARY KEY, value TEXT)')
def insert(count):
    start = time.perf_counter_ns()
    for number in range(count):
        database.execute('INSERT INTO pairs (value) VALUES (?)', ('x' * 100,))
    return (time.perf_counter_ns() - start) // count
insert(20)
print('sqlite, a WAL transaction:', insert(100))
";

/// Prints `name: nanoseconds` for each program. `dir` is empty but for an archive, `tree.tar`,
/// whose files are in `tree`. The caller may write to /proc/sys/vm/drop_caches.
pub fn measure(dir: &Path, mib: usize) -> io::Result<()> {
    sequential(&dir.join("large"), mib)?;
    // The memory that its pages leave is given back to the host meanwhile.
    drop_caches()?;
    settle();
    python()?;
    let archive = dir.join("tree.tar");
    timed("untar", 1, || {
        run(Command::new("tar")
            .arg("-C")
            .arg(dir)
            .arg("-xf")
            .arg(&archive))
    })?;
    settle();
    for name in ["find, cold", "find, warm"] {
        if name.ends_with("cold") {
            drop_caches()?;
        }
        timed(name, 1, || run(Command::new("find").arg(dir.join("tree"))))?;
    }
    git(&dir.join("repository"))?;
    let mut sqlite = Command::new("python3");
    sqlite.args(["-c", SQLITE]).arg(dir.join("database"));
    succeeded(sqlite.status()?)
}

fn python() -> io::Result<()> {
    let mut python = Command::new("python3");
    python.args(["-c", "pass"]);
    let mut cold = 0;
    for _ in 0..STARTS {
        drop_caches()?;
        let start = Instant::now();
        run(&mut python)?;
        cold += start.elapsed().as_nanos();
    }
    println!("python3 -c pass, cold: {}", cold / STARTS as u128);
    timed("python3 -c pass, warm", STARTS, || {
        (0..STARTS).try_for_each(|_| run(&mut python))
    })
}

fn git(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)?;
    for number in 0..ADDED {
        let text = format!("{number}\n").repeat(200);
        fs::write(dir.join(format!("file{number}")), text)?;
    }
    let git = || {
        let mut command = Command::new("git");
        command.arg("-C").arg(dir);
        command
    };
    run(git().args(["init", "--quiet"]))?;
    timed("git add", 1, || run(git().args(["add", "."])))
}

fn run(command: &mut Command) -> io::Result<()> {
    succeeded(command.stdout(Stdio::null()).status()?)
}

fn succeeded(status: std::process::ExitStatus) -> io::Result<()> {
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("a program ended with {status}")))
}
