//! Which way the rooms of a crate depend on one another. The rooms are the modules that the crate's
//! root declares, bottom first: a room may use those that stand before it.

use crate::files::{self, File};
use crate::rust::{self, Token};

/// Every use of a room by one below it, or of the crate's root by any room, as a line of text.
pub fn pointing_up(crate_dir: &str) -> Vec<String> {
    let rooms = rooms_of(crate_dir);
    assert!(!rooms.is_empty(), "{crate_dir} declares no modules");
    let files = files::below(&format!("{crate_dir}/src"));
    files
        .iter()
        .flat_map(|file| in_file(crate_dir, file, &rooms))
        .collect()
}

/// The rooms of a crate, bottom first.
pub fn rooms_of(crate_dir: &str) -> Vec<String> {
    let root = ["lib.rs", "main.rs"].iter().find_map(|name| {
        let path = files::root().join(crate_dir).join("src").join(name);
        std::fs::read_to_string(path).ok()
    });
    rooms(&root.unwrap())
}

/// The modules that a crate's root declares, in order.
fn rooms(root: &str) -> Vec<String> {
    let code = rust::code(root);
    let tokens = rust::tokens(&code);
    let declared = tokens
        .windows(3)
        .filter(|w| w[0].text == "mod" && w[2].text == ";");
    declared.map(|w| w[1].text.to_owned()).collect()
}

fn in_file(crate_dir: &str, file: &File, rooms: &[String]) -> Vec<String> {
    let module = module(crate_dir, &file.path);
    let Some(own) = rooms.iter().position(|room| *room == module[0]) else {
        return Vec::new();
    };
    let code = rust::code(&file.text);
    let mut found = Vec::new();
    for (name, line) in from_root(&rust::tokens(&code), module.len()) {
        let place = format!("{}:{line}: {}", file.path, rooms[own]);
        match rooms.iter().position(|room| room == name) {
            None => found.push(format!("{place} uses {name} of the crate's root")),
            Some(other) if other > own => {
                found.push(format!("{place} uses {name}, a room above it"));
            }
            Some(_) => {}
        }
    }
    found
}

/// The path of the module that a file is, without the crate.
fn module<'a>(crate_dir: &str, path: &'a str) -> Vec<&'a str> {
    let inside = path
        .trim_start_matches(crate_dir)
        .trim_start_matches("/src/");
    let mut module: Vec<&str> = inside.trim_end_matches(".rs").split('/').collect();
    if module.len() > 1 {
        module.pop_if(|last| *last == "mod");
    }
    module
}

/// What a file names of the crate's root, by `crate::` or by enough `super::`, and on which lines.
/// `depth` is the number of modules from the crate's root to the file's.
fn from_root<'a>(tokens: &[Token<'a>], depth: usize) -> Vec<(&'a str, usize)> {
    let mut found = Vec::new();
    let mut braces = 0;
    // How many braces were open where each inline module begins.
    let mut inline = Vec::new();
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text);
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].text {
            "{" => {
                if at >= 2 && text(at - 2) == "mod" {
                    inline.push(braces);
                }
                braces += 1;
            }
            "}" => {
                braces -= 1;
                inline.pop_if(|outside| *outside == braces);
            }
            "crate" if text(at + 1) == "::" => found.extend(first_names(&tokens[at + 2..])),
            "super" if text(at + 1) == "::" => {
                let mut levels = 1;
                while text(at + 2) == "super" {
                    (levels, at) = (levels + 1, at + 2);
                }
                if levels >= depth + inline.len() {
                    found.extend(first_names(&tokens[at + 2..]));
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// The first name of a path, or of each path in a group.
fn first_names<'a>(tokens: &[Token<'a>]) -> Vec<(&'a str, usize)> {
    if tokens[0].text != "{" {
        return vec![(tokens[0].text, tokens[0].line)];
    }
    let mut names = Vec::new();
    let mut depth = 0;
    for pair in tokens.windows(2) {
        match pair[0].text {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        let begins = matches!(pair[0].text, "{" | ",") && !matches!(pair[1].text, "}" | "self");
        if depth == 1 && begins {
            names.push((pair[1].text, pair[1].line));
        }
    }
    names
}

mod tests {
    use super::{File, in_file, rooms};

    #[track_caller]
    fn found(path: &str, text: &str) -> Vec<String> {
        let rooms = rooms("pub mod low;\n// mod none;\nmod middle;\npub(crate) mod high;\n");
        let (path, text) = (path.to_owned(), text.to_owned());
        in_file("a", &File { path, text }, &rooms)
    }

    #[test]
    fn arrows_down_and_within_a_room_are_allowed() {
        let text =
            "use crate::{low::{high, x}, middle::y}; use super::high; fn f() { crate::low::g() }";
        assert_eq!(found("a/src/middle/part.rs", text), [""; 0]);
    }

    #[test]
    fn an_arrow_up_is_found_in_a_group_and_in_the_midst_of_code() {
        let text =
            "use crate::{\n    low::x,\n    high::{self, y},\n};\nfn f() { crate::high::g() }\n";
        assert_eq!(
            found("a/src/middle.rs", text),
            [
                "a/src/middle.rs:3: middle uses high, a room above it",
                "a/src/middle.rs:5: middle uses high, a room above it"
            ]
        );
    }

    #[test]
    fn an_arrow_up_is_found_where_super_leaves_the_room() {
        let up = ["a/src/low/part.rs:1: low uses high, a room above it"];
        assert_eq!(found("a/src/low/part.rs", "use super::super::high::x;"), up);
        let text = "mod tests { use super::super::super::{high::x}; use super::high; }";
        assert_eq!(found("a/src/low/part.rs", text), up);
        assert_eq!(
            found("a/src/low/mod.rs", "use super::high::x;"),
            ["a/src/low/mod.rs:1: low uses high, a room above it"]
        );
    }

    #[test]
    fn what_the_crates_root_defines_lies_above_every_room() {
        assert_eq!(
            found("a/src/high.rs", "use crate::Thing;"),
            ["a/src/high.rs:1: high uses Thing of the crate's root"]
        );
    }
}
