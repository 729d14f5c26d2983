//! Which system calls threads under a filter make, of this process's descendants: a program in the
//! kernel, at its tracepoint for system calls, puts each into a set once. So it costs little, and
//! neither the programs nor their filters are changed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use crate::types;

/// A call that a thread of this name has made, with the argument that [`Recorder::start`] was asked
/// to look at.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Made {
    pub thread: String,
    pub call: u32,
    pub argument: u32,
}

/// Records until it is dropped.
pub struct Recorder {
    seen: OwnedFd,
    _attached: OwnedFd,
}

/// Commands of bpf(2).
const MAP_CREATE: i64 = 0;
const MAP_UPDATE_ELEM: i64 = 2;
const MAP_GET_NEXT_KEY: i64 = 4;
const PROG_LOAD: i64 = 5;
const RAW_TRACEPOINT_OPEN: i64 = 17;

/// `BPF_MAP_TYPE_*` and `BPF_PROG_TYPE_RAW_TRACEPOINT`
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const RAW_TRACEPOINT: u32 = 17;

/// How many calls with different arguments there can be: sudden ones are arguments of programs
/// other than rvm-vmm, which run under filters too.
const MOST_SEEN: u32 = 1 << 16;
const MOST_CALLS: u32 = 512;

/// What the kernel's program puts into the set: a thread's name, the call and the argument.
const KEY: usize = 24;

impl Recorder {
    /// Looks at one argument of each of these calls, by the argument's index.
    pub fn start(arguments: &[(u32, u8)]) -> io::Result<Self> {
        let seen = map(HASH, KEY as u32, MOST_SEEN)?;
        let places = map(ARRAY, 4, MOST_CALLS)?;
        for &(call, index) in arguments {
            // Of struct pt_regs: rdi, rsi, rdx, r10, r8, r9.
            let place: u32 = [112, 104, 96, 56, 72, 64][usize::from(index)];
            update(&places, call, place)?;
        }
        let program = load(&program(&seen, &places, &Task::of_this_kernel()?)?)?;
        let name = c"sys_enter";
        let mut request = Request::default();
        request.word(0, name.as_ptr().addr() as u64);
        request.half(8, program.as_raw_fd() as u32);
        let attached = request.make(RAW_TRACEPOINT_OPEN)?;
        Ok(Self {
            seen,
            _attached: owned(attached),
        })
    }

    pub fn made(&self) -> io::Result<BTreeSet<Made>> {
        let mut made = BTreeSet::new();
        let (mut key, mut next) = ([0u8; KEY], [0u8; KEY]);
        let mut is_first = true;
        loop {
            let mut request = Request::default();
            request.half(0, self.seen.as_raw_fd() as u32);
            request.word(
                8,
                if is_first {
                    0
                } else {
                    key.as_ptr().addr() as u64
                },
            );
            request.word(16, next.as_mut_ptr().expose_provenance() as u64);
            match request.make(MAP_GET_NEXT_KEY) {
                Err(end) if end.raw_os_error() == Some(libc::ENOENT) => return Ok(made),
                result => result?,
            };
            (key, is_first) = (next, false);
            let name = key[..16]
                .split(|byte| *byte == 0)
                .next()
                .unwrap_or_default();
            let number = |at: usize| u32::from_ne_bytes(key[at..at + 4].try_into().unwrap());
            made.insert(Made {
                thread: String::from_utf8_lossy(name).into_owned(),
                call: number(16),
                argument: number(20),
            });
        }
    }
}

/// Offsets in struct task_struct.
struct Task {
    /// The number of filters that a thread is under.
    filter_count: u32,
    tgid: u32,
    real_parent: u32,
}

impl Task {
    fn of_this_kernel() -> io::Result<Self> {
        let description = fs::read("/sys/kernel/btf/vmlinux")?;
        let offset = |structure, member| {
            let missing =
                || io::Error::other(format!("no {structure}.{member} in the kernel's BTF"));
            types::offset(&description, structure, member).ok_or_else(missing)
        };
        Ok(Self {
            filter_count: offset("task_struct", "seccomp")? + offset("seccomp", "filter_count")?,
            tgid: offset("task_struct", "tgid")?,
            real_parent: offset("task_struct", "real_parent")?,
        })
    }
}

/// This process's id in the kernel.
fn own_id() -> io::Result<u32> {
    /// The inode of the first pid namespace, `PROC_PID_INIT_INO`.
    const FIRST: u64 = 0xeffffffc;
    match fs::metadata("/proc/self/ns/pid")?.ino() {
        FIRST => Ok(std::process::id()),
        _ => Err(io::Error::other("this is not the first pid namespace")),
    }
}

/// The filters that this process is under, as all that it starts.
fn own_filters() -> io::Result<u32> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp_filters:"));
    let count = line.and_then(|count| count.trim().parse().ok());
    count.ok_or_else(|| io::Error::other("the kernel does not count filters"))
}

/// Operations of eBPF.
const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const ADD: u8 = 0x07;
const LOAD_HALF: u8 = 0x61;
const LOAD_WORD: u8 = 0x79;
const STORE: u8 = 0x62;
const STORE_HALF: u8 = 0x63;
const IF_EQUAL: u8 = 0x15;
const IF_MORE: u8 = 0x25;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LOAD_MAP: u8 = 0x18;

/// Helpers of bpf-helpers(7).
const LOOK_UP: i32 = 1;
const UPDATE: i32 = 2;
const CURRENT_NAME: i32 = 16;
const CURRENT_TASK: i32 = 35;
const READ: i32 = 113;

/// The stack: a task, a number of a task, a value, the key.
const TASK: i32 = -48;
const COUNT: i32 = -40;
const VALUE: i32 = -32;
const NAME: i32 = -24;
const NUMBER: i32 = -8;
const ARGUMENT: i32 = -4;

/// How many ancestors are looked at.
const GENERATIONS: usize = 24;

/// The kernel's program, as array of `struct bpf_insn`.
fn program(seen: &OwnedFd, places: &OwnedFd, task: &Task) -> io::Result<Vec<u64>> {
    let own_filters = own_filters()?;
    let map = |register, map: &OwnedFd| {
        let descriptor = map.as_raw_fd();
        [op(LOAD_MAP, register, 1, 0, descriptor), op(0, 0, 0, 0, 0)]
    };
    Ok([
        // The context: the registers, and the call's number.
        &[op(MOVE, 6, 1, 0, 0), op(CALL, 0, 0, 0, CURRENT_TASK)][..],
        &[op(MOVE, 8, 0, 0, 0)],
        &read(task.filter_count, 4, COUNT),
        &[op(LOAD_HALF, 1, 10, COUNT as i16, 0)],
        &[op(IF_MORE, 1, 0, 2, own_filters as i32)],
        &[op(SET, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)],
        &descends_from(own_id()?, task),
        &stack(1, NAME),
        &[op(SET, 2, 0, 0, 16), op(CALL, 0, 0, 0, CURRENT_NAME)],
        &[
            op(LOAD_WORD, 7, 6, 8, 0),
            op(STORE_HALF, 10, 7, NUMBER as i16, 0),
        ],
        &[op(STORE, 10, 0, ARGUMENT as i16, 0)],
        &map(1, places),
        &stack(2, NUMBER),
        &[op(CALL, 0, 0, 0, LOOK_UP), op(IF_EQUAL, 0, 0, 8, 0)],
        &[op(LOAD_HALF, 7, 0, 0, 0), op(IF_EQUAL, 7, 0, 6, 0)],
        &[op(LOAD_WORD, 3, 6, 0, 0), op(0x0f, 3, 7, 0, 0)],
        &[op(SET, 2, 0, 0, 4)],
        &stack(1, ARGUMENT),
        &[op(CALL, 0, 0, 0, READ)],
        &[op(STORE, 10, 0, VALUE as i16, 1)],
        &map(1, seen),
        &stack(2, NAME),
        &stack(3, VALUE),
        &[op(SET, 4, 0, 0, 0), op(CALL, 0, 0, 0, UPDATE)],
        &[op(SET, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)],
    ]
    .concat())
}

/// The address of a place in the stack.
fn stack(register: u8, at: i32) -> [u64; 2] {
    [op(MOVE, register, 10, 0, 0), op(ADD, register, 0, 0, at)]
}

/// Reads a member of the task in register 8.
fn read(offset: u32, length: i32, to: i32) -> [u64; 6] {
    let [from, place] = stack(1, to);
    [
        op(MOVE, 3, 8, 0, 0),
        op(ADD, 3, 0, 0, offset as i32),
        op(SET, 2, 0, 0, length),
        from,
        place,
        op(CALL, 0, 0, 0, READ),
    ]
}

/// Ends the program unless the task in register 8 is of this process or has it as an ancestor.
fn descends_from(id: u32, task: &Task) -> Vec<u64> {
    let mut code = Vec::new();
    let parent = [
        &read(task.real_parent, 8, TASK)[..],
        &[op(LOAD_WORD, 8, 10, TASK as i16, 0)],
    ]
    .concat();
    let end = [op(SET, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)];
    let generation = 6 + 2 + parent.len();
    for number in 1..=GENERATIONS {
        code.extend(read(task.tgid, 4, COUNT));
        code.push(op(LOAD_HALF, 1, 10, COUNT as i16, 0));
        let rest = parent.len() + (GENERATIONS - number) * generation + end.len();
        code.push(op(IF_EQUAL, 1, 0, rest as i16, id as i32));
        code.extend(&parent);
    }
    code.extend(end);
    code
}

/// `struct bpf_insn`
fn op(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    u64::from_le_bytes([code, to | from << 4, low, high, a, b, c, d])
}

fn map(kind: u32, key_size: u32, entries: u32) -> io::Result<OwnedFd> {
    let mut request = Request::default();
    for (at, value) in [(0, kind), (4, key_size), (8, 4), (12, entries)] {
        request.half(at, value);
    }
    request.make(MAP_CREATE).map(owned)
}

fn update(map: &OwnedFd, key: u32, value: u32) -> io::Result<()> {
    let mut request = Request::default();
    request.half(0, map.as_raw_fd() as u32);
    request.word(8, (&raw const key).addr() as u64);
    request.word(16, (&raw const value).addr() as u64);
    request.make(MAP_UPDATE_ELEM).map(drop)
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    // The helpers that read the kernel's memory are for programs under its licence.
    let licence = c"GPL";
    let mut log = vec![0u8; 64 * 1024];
    let mut request = Request::default();
    request.half(0, RAW_TRACEPOINT);
    request.half(4, program.len() as u32);
    request.word(8, program.as_ptr().addr() as u64);
    request.word(16, licence.as_ptr().addr() as u64);
    request.half(24, 1);
    request.half(28, log.len() as u32);
    request.word(32, log.as_mut_ptr().expose_provenance() as u64);
    request.make(PROG_LOAD).map(owned).map_err(|error| {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
        io::Error::new(
            error.kind(),
            format!("{error}: {}", String::from_utf8_lossy(&log[..end])),
        )
    })
}

/// `union bpf_attr`
#[repr(C, align(8))]
#[derive(Default)]
struct Request([u64; 16]);

impl Request {
    fn half(&mut self, at: usize, value: u32) {
        self.0[at / 8] |= u64::from(value) << (at % 8 * 8);
    }

    fn word(&mut self, at: usize, value: u64) {
        self.0[at / 8] = value;
    }

    #[expect(unsafe_code, reason = "bpf(2)")]
    fn make(&self, command: i64) -> io::Result<i32> {
        // SAFETY: the addresses in the request are of objects that outlive the call and have the
        // sizes that the command wants.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                &raw const self.0,
                size_of_val(&self.0),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(result as i32)
    }
}

#[expect(unsafe_code, reason = "bpf(2) returns descriptors as numbers")]
fn owned(descriptor: i32) -> OwnedFd {
    // SAFETY: the kernel has just made it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
