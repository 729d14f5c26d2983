//! What tells a machine and a program in it apart from all others, and what nobody else may know.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;

use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, clock_gettime};

/// The type of an entry of the auxiliary vector, see getauxval(3).
const AT_RANDOM: u64 = 25;

/// Prints a name and a value a line. The clocks are first, in nanoseconds.
pub fn print() -> io::Result<()> {
    let now = [
        ("real", ClockId::Realtime),
        ("monotonic", ClockId::Monotonic),
        ("boot", ClockId::Boottime),
    ];
    for (name, clock) in now {
        let time = clock_gettime(clock);
        println!("{name} {}", time.tv_sec * 1_000_000_000 + time.tv_nsec);
    }
    for name in ["boot_id", "uuid"] {
        let value = fs::read_to_string(format!("/proc/sys/kernel/random/{name}"))?;
        println!("{name} {}", value.trim());
    }
    let mut random = [0; 64];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    println!("urandom {}", hex(&random));
    getrandom(&mut random, GetRandomFlags::empty())?;
    println!("getrandom {}", hex(&random));
    println!("at_random {}", hex(&at_random()?));
    print_addresses()?;
    for link in fs::read_dir("/sys/class/net")? {
        let link = link?;
        let address = fs::read_to_string(link.path().join("address"))?;
        println!("mac.{} {}", link.file_name().display(), address.trim());
    }
    for key in fs::read_to_string("/proc/keys")?.lines() {
        // Its serial number, six fields of no interest, its type and description.
        let mut fields = key.split_whitespace();
        let serial = fields.next().unwrap_or_default();
        let rest: Vec<_> = fields.skip(6).collect();
        println!("key.{serial} {}", rest.join(" "));
    }
    Ok(())
}

/// The bytes that execve(2) drew for the program: its stack canary is made of them.
fn at_random() -> io::Result<[u8; 16]> {
    let vector = fs::read("/proc/self/auxv")?;
    let words: Vec<u64> = vector
        .chunks_exact(8)
        .map(|word| {
            word.iter()
                .rev()
                .fold(0, |all, byte| all << 8 | u64::from(*byte))
        })
        .collect();
    let entry = words.chunks_exact(2).find(|entry| entry[0] == AT_RANDOM);
    let address = entry.ok_or(io::ErrorKind::NotFound)?[1];
    let mut bytes = [0; 16];
    File::open("/proc/self/mem")?.read_exact_at(&mut bytes, address)?;
    Ok(bytes)
}

/// Where the program, its heap, its stack and the vDSO are.
fn print_addresses() -> io::Result<()> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let addresses = |line: &str| -> (String, String) {
        let range = line.split(' ').next().unwrap_or_default();
        let (start, end) = range.split_once('-').unwrap_or_default();
        (start.to_owned(), end.to_owned())
    };
    let program = maps.lines().find(|line| line.ends_with("/inside"));
    println!("program {}", addresses(program.unwrap_or_default()).0);
    for name in ["heap", "stack", "vdso"] {
        let line = maps
            .lines()
            .find(|line| line.ends_with(&format!("[{name}]")));
        let (start, end) = addresses(line.unwrap_or_default());
        // The stack's start depends on how much of it has been used.
        println!("{name} {}", if name == "stack" { end } else { start });
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
