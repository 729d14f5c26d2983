//! That what documents name exists. In back quotes, a name counts as that of a file if it ends in
//! `.rs` or begins with a directory of the repository, and `FILE.rs::NAME` as what the file
//! defines. A crate's README may leave out the crate's directory, and `src` too.

use std::path::Path;

use crate::files::{self, File};

/// What a build makes may be named too.
const MADE: &[&str] = &["target/", "dist/"];

/// Each name of a file, and each link to one, that leads nowhere.
pub fn missing_files() -> Vec<String> {
    let root = files::root();
    let tops: Vec<String> = files::below("")
        .iter()
        .filter_map(|file| Some(format!("{}/", file.path.split_once('/')?.0)))
        .collect();
    let mut found = Vec::new();
    for document in files::below("")
        .iter()
        .filter(|file| file.has_extension("md"))
    {
        for (line, text) in document.text.lines().enumerate() {
            let place = format!("{}:{}", document.path, line + 1);
            for name in quoted(text).filter(|name| is_file_name(name, &tops)) {
                if !MADE.iter().any(|made| name.starts_with(made)) && !exists(&root, document, name)
                {
                    found.push(format!("{place}: `{name}`"));
                }
            }
            for target in links(text) {
                if !target.is_empty() && !own_dir(&root, document).join(target).exists() {
                    found.push(format!("{place}: link to {target}"));
                }
            }
        }
    }
    found
}

/// What stands in back quotes in a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The files that a line links to, without anchors; other sites are left out.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .filter(|target| !target.contains("://"))
        .map(|target| target.split('#').next().unwrap_or_default())
}

fn is_file_name(name: &str, tops: &[String]) -> bool {
    let path = name.split_once("::").map_or(name, |(path, _)| path);
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    path.chars().all(plain)
        && (path.ends_with(".rs") || tops.iter().any(|top| path.starts_with(top.as_str())))
}

fn exists(root: &Path, document: &File, name: &str) -> bool {
    let (path, item) = name
        .split_once("::")
        .map_or((name, None), |(path, item)| (path, Some(item)));
    let own = own_dir(root, document);
    let mut places = vec![root.join(path)];
    if document.path.ends_with("README.md") {
        places.extend([own.join(path), own.join("src").join(path)]);
    }
    let Some(place) = places.iter().find(|place| place.exists()) else {
        return false;
    };
    let Some(item) = item else { return true };
    let text = std::fs::read_to_string(place).unwrap_or_default();
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|word| word == item)
}

fn own_dir(root: &Path, document: &File) -> std::path::PathBuf {
    root.join(&document.path)
        .parent()
        .unwrap_or(root)
        .to_path_buf()
}
