//! Which pages of a template's memory its machines write to: the first machine is looked at when it
//! has a container of which no program has run. What our kernel and our agent have written by then,
//! others write as well.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use rustix::fs::{AtFlags, Mode, OFlags, linkat, openat};
use rustix::io::Errno;
use rvm_protocol::vmm::{MAX_PAGE_RUNS, PageRun};

use super::store::Template;

/// The list's file in the directory of a template.
pub(super) const WRITTEN: &str = "written";

const PAGE: u64 = 4096;

/// A block of the memory's file, in pages.
const BLOCK: u32 = 512;

/// The most pages that are noted. A machine from the template writes to a third of these.
const MAX_PAGES: usize = 2048;

/// The longest list of a process's mappings that is read, in bytes.
const MAX_MAPS: u64 = 1 << 20;

/// Bits of an entry of pagemap, see proc_pid_pagemap(5): it is in memory; it is a page of a file.
const PRESENT: u64 = 1 << 63;
const OF_FILE: u64 = 1 << 61;

impl Template {
    /// The pages that its machines write to before a program of a container runs, if that is known.
    pub(crate) fn written(&self) -> Option<&[PageRun]> {
        self.written.as_deref()
    }

    /// Notes which pages the first machine has written to, which this process runs.
    pub(crate) fn note_written(&self, vmm: i32) -> io::Result<()> {
        write(self.dir.as_fd(), &find(vmm, &self.memory)?)
    }
}

/// Reads a list. None if it is none.
pub(super) fn decode(text: &[u8]) -> Option<Vec<PageRun>> {
    let runs: Vec<PageRun> = serde_json::from_slice(text).ok()?;
    (runs.len() <= MAX_PAGE_RUNS).then_some(runs)
}

/// The pages of the memory's file of which a process has copies.
fn find(process: i32, memory: &File) -> io::Result<Vec<PageRun>> {
    let maps = File::open(format!("/proc/{process}/maps"))?;
    let mut text = String::new();
    maps.take(MAX_MAPS).read_to_string(&mut text)?;
    let inode = memory.metadata()?.ino();
    let pagemap = File::open(format!("/proc/{process}/pagemap"))?;
    let mut pages = Vec::new();
    for mapping in text.lines().filter_map(Mapping::parse) {
        if mapping.inode == inode {
            mapping.find_copies(&pagemap, &mut pages)?;
        }
    }
    pages.sort_unstable();
    let runs = runs(&pages);
    if pages.len() > MAX_PAGES || runs.len() > MAX_PAGE_RUNS {
        let problem = format!("it has written to {} pages already", pages.len());
        return Err(io::Error::other(problem));
    }
    Ok(runs)
}

/// Puts a list into the directory of a template, as a whole, unless there is one.
fn write(dir: BorrowedFd<'_>, runs: &[PageRun]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    let mut file = File::from(openat(dir, ".", flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(&serde_json::to_vec(runs)?)?;
    match linkat(&file, "", dir, WRITTEN, AtFlags::EMPTY_PATH) {
        Err(Errno::EXIST) => Ok(()),
        linked => Ok(linked?),
    }
}

/// A mapping of a file, in pages.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    count: u64,
    offset: u64,
    inode: u64,
}

impl Mapping {
    /// From a line of maps, see proc_pid_maps(5).
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let start = number(start)? / PAGE;
        Some(Self {
            start,
            count: (number(end)? / PAGE).checked_sub(start)?,
            offset: number(words.nth(1)?)? / PAGE,
            inode: words.nth(1)?.parse().ok()?,
        })
    }

    /// Adds the pages of the file that are copies here, by their numbers in the file.
    fn find_copies(&self, pagemap: &File, pages: &mut Vec<u32>) -> io::Result<()> {
        let mut entries = [0; BLOCK as usize * 8];
        for begin in (0..self.count).step_by(BLOCK as usize) {
            let count = (self.count - begin).min(BLOCK.into());
            let bytes = &mut entries[..count as usize * 8];
            pagemap.read_exact_at(bytes, (self.start + begin) * 8)?;
            for (index, entry) in (self.offset + begin..).zip(bytes.chunks_exact(8)) {
                let entry = u64::from_ne_bytes(entry.try_into().map_err(io::Error::other)?);
                if entry & (PRESENT | OF_FILE) == PRESENT {
                    pages.extend(u32::try_from(index));
                }
            }
        }
        Ok(())
    }
}

/// Pages, in their order, as runs that lie in one block each.
fn runs(pages: &[u32]) -> Vec<PageRun> {
    let mut runs: Vec<PageRun> = Vec::new();
    for &page in pages {
        match runs.last_mut() {
            Some(PageRun(first, count)) if *first + *count == page && page % BLOCK != 0 => {
                *count += 1;
            }
            _ => runs.push(PageRun(page, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_follow_one_another_in_a_block_are_a_run() {
        let found = runs(&[0, 1, 3, 510, 511, 512, 513, 2000]);
        let expected = [(0, 2), (3, 1), (510, 2), (512, 2), (2000, 1)];
        assert_eq!(found, expected.map(|(first, count)| PageRun(first, count)));
    }

    #[test]
    fn a_line_of_maps_tells_a_file_and_a_place_in_it() {
        let line = "7f0000200000-7f0000600000 rw-p 00400000 00:1b 4711   /run/rvm/memory (deleted)";
        let expected = Mapping {
            start: 0x7_f000_0200,
            count: 1024,
            offset: 1024,
            inode: 4711,
        };
        assert_eq!(Mapping::parse(line), Some(expected));
        for none in [
            "",
            "7f00-",
            "2000-1000 rw-p 0 0:0 0",
            "1000-2000 rw-p 0 0:0",
        ] {
            assert_eq!(Mapping::parse(none), None, "{none}");
        }
    }

    #[test]
    fn a_list_that_is_none_is_not_used() {
        assert_eq!(
            decode(b"[[0,2],[7,1]]"),
            Some(vec![PageRun(0, 2), PageRun(7, 1)])
        );
        let long = serde_json::to_vec(&vec![PageRun(0, 1); MAX_PAGE_RUNS + 1]).unwrap();
        for none in [&b""[..], b"{}", b"[[1]]", b"[[-1,2]]", &long] {
            assert_eq!(decode(none), None);
        }
    }
}
