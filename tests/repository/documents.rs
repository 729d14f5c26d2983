//! Whether the names in documents lead somewhere. In back quotes, a name that ends in `.rs` or
//! begins with a directory of the repository is a file's, `FILE.rs::NAME` is an item of that file,
//! and a lower-case name of five words or more is a test's. A crate's README may leave out the
//! crate's directory, `src`, and in a table the folder that the row begins with. A link leads to a
//! file, to one of its headings, or to another site.

use std::path::{Path, PathBuf};

use crate::arrows;
use crate::files::{self, File};

/// A build makes these directories.
const MADE: &[&str] = &["target/", "dist/"];

/// The fewest words of a name that is taken for a test's.
const TEST_WORDS: usize = 5;

/// Each name and each link in a document that leads nowhere.
pub fn dangling_names() -> Vec<String> {
    let repository = Repository::read();
    let documents = repository
        .files
        .iter()
        .filter(|file| file.has_extension("md"));
    let mut found = Vec::new();
    for document in documents {
        for (index, line) in document.text.lines().enumerate() {
            let folder = quoted(line)
                .next()
                .filter(|_| line.starts_with('|'))
                .unwrap_or("");
            let names = quoted(line).filter(|name| !repository.has(document, folder, name));
            let targets = links(line).filter(|target| !repository.links(document, target));
            for name in names.chain(targets) {
                found.push(format!("{}:{}: {name}", document.path, index + 1));
            }
        }
    }
    found
}

/// Each room of a crate that the crate's README does not name in back quotes.
pub fn unlisted_rooms(crate_dir: &str) -> Vec<String> {
    let readme = format!("{crate_dir}/README.md");
    let text = read(&files::root().join(&readme));
    let parts = |name: &'_ str| {
        name.trim_end_matches('/')
            .trim_end_matches(".rs")
            .to_owned()
    };
    let names: Vec<String> = text.lines().flat_map(quoted).map(parts).collect();
    let is_listed = |room: &String| {
        names
            .iter()
            .any(|name| name.split('/').any(|it| it == room))
    };
    let rooms = arrows::rooms_of(crate_dir).into_iter();
    rooms
        .filter(|room| !is_listed(room))
        .map(|room| format!("{readme}: {room} is not listed"))
        .collect()
}

/// What stands in back quotes in a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The targets of a line's links, without those on other sites.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let links = line
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'));
    links
        .map(|(target, _)| target)
        .filter(|target| !target.contains("://"))
}

struct Repository {
    root: PathBuf,
    files: Vec<File>,
    /// The directories at the root, each with a slash behind it.
    directories: Vec<String>,
}

impl Repository {
    fn read() -> Self {
        let files = files::below("");
        let directory = |file: &File| Some(format!("{}/", file.path.split_once('/')?.0));
        let directories = files.iter().filter_map(directory).collect();
        Self {
            root: files::root(),
            files,
            directories,
        }
    }

    /// Whether what stands in back quotes is no name of a file or a test, or one that exists.
    fn has(&self, document: &File, folder: &str, quoted: &str) -> bool {
        let (path, item) = match quoted.split_once("::") {
            Some((path, item)) => (path, Some(item)),
            None => (quoted, None),
        };
        if self.is_path(path) {
            return MADE.iter().any(|made| path.starts_with(made))
                || self
                    .file(document, folder, path)
                    .is_some_and(|file| match item {
                        None => true,
                        Some(item) => words(&read(&file)).any(|word| word == item),
                    });
        }
        !is_test(quoted) || self.defines(quoted)
    }

    fn is_path(&self, name: &str) -> bool {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        let in_directory = || self.directories.iter().any(|top| name.starts_with(top));
        name.chars().all(plain) && (name.ends_with(".rs") || in_directory())
    }

    /// The file or directory that a document calls so, in a row about `folder`.
    fn file(&self, document: &File, folder: &str, path: &str) -> Option<PathBuf> {
        let mut bases = vec![self.root.clone()];
        if document.path.ends_with("README.md") {
            let own = self.directory(document);
            bases.extend([own.join("src").join(folder), own.join("src"), own]);
        }
        bases
            .into_iter()
            .map(|base| base.join(path))
            .find(|file| file.exists())
    }

    fn directory(&self, document: &File) -> PathBuf {
        let path = self.root.join(&document.path);
        path.parent().unwrap_or(&self.root).to_owned()
    }

    fn defines(&self, test: &str) -> bool {
        let definition = format!("fn {test}(");
        let mut sources = self.files.iter().filter(|file| file.has_extension("rs"));
        sources.any(|file| file.text.contains(&definition))
    }

    fn links(&self, document: &File, target: &str) -> bool {
        let (path, heading) = target.split_once('#').unwrap_or((target, ""));
        let file = match path {
            "" => self.root.join(&document.path),
            path => self.directory(document).join(path),
        };
        file.exists() && (heading.is_empty() || headings(&read(&file)).any(|it| it == heading))
    }
}

fn is_test(name: &str) -> bool {
    let of_test = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.chars().all(of_test) && name.split('_').count() >= TEST_WORDS
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// The anchors of a document's headings.
fn headings(text: &str) -> impl Iterator<Item = String> {
    let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
    headings.map(|heading| {
        let name = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = |c: &char| c.is_alphanumeric() || "-_ ".contains(*c);
        name.chars()
            .filter(kept)
            .collect::<String>()
            .replace(' ', "-")
    })
}

/// Empty if it is a directory.
fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

mod tests {
    use super::{File, Repository, links, quoted};

    #[test]
    fn names_of_files_items_and_tests_are_told_from_other_words() {
        let repository = Repository::read();
        let document = File {
            path: "tests/README.md".to_owned(),
            text: String::new(),
        };
        let dangling = |line| {
            let names = quoted(line).filter(|name| !repository.has(&document, "cri", name));
            names.map(str::to_owned).collect::<Vec<_>>()
        };
        let all = "`lib.rs` `tests/src/lib.rs::engine` `src/cri/` `pod.rs` `names_of_files_items_and_tests\
                   _are_told_from_other_words` `rvm run` `dist/bin/rvm` `config.json`";
        assert_eq!(dangling(all), [""; 0]);
        let none = "`none.rs` `tests/src/lib.rs::none` `src/cri/none` `docs/none` `a_b_c_d_e`";
        assert_eq!(
            dangling(none),
            [
                "none.rs",
                "tests/src/lib.rs::none",
                "docs/none",
                "a_b_c_d_e"
            ]
        );
    }

    #[test]
    fn links_lead_to_files_and_their_headings() {
        let repository = Repository::read();
        let document = File {
            path: "docs/x.md".to_owned(),
            text: String::new(),
        };
        let line = "[a](../README.md) [b](../README.md#none) [c](none.md) [d](https://none)";
        let targets = links(line).filter(|target| !repository.links(&document, target));
        assert_eq!(
            targets.collect::<Vec<_>>(),
            ["../README.md#none", "none.md"]
        );
    }
}
