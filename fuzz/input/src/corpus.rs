//! The corpora in `fuzz/corpus`, without libFuzzer.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A target's name and its function.
pub type Target = (&'static str, fn(&[u8]));

/// Gives each file of the corpora to its target. `targets` are those of one crate, `library`: as
/// many as the files in `fuzz/fuzz_targets` that name it.
pub fn replay(library: &str, targets: &[Target]) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let given: BTreeSet<String> = targets.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(of_library(&fuzz, library), given);
    for (name, target) in targets {
        let inputs = entries(&fuzz.join("corpus").join(name));
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for input in inputs {
            println!("{}", input.display());
            target(&fs::read(input).unwrap());
        }
    }
}

/// The targets whose files name a library.
fn of_library(fuzz: &Path, library: &str) -> BTreeSet<String> {
    let files = entries(&fuzz.join("fuzz_targets")).into_iter();
    let calls = format!("{library}::fuzzing::");
    let of_library = files.filter(|file| fs::read_to_string(file).unwrap().contains(&calls));
    let name = |file: PathBuf| file.file_stem().unwrap().to_str().unwrap().to_owned();
    of_library.map(name).collect()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap();
    let mut entries: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_built_has_a_corpus_and_is_in_the_readme() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let names = |dir: &str| -> BTreeSet<String> {
            let files = entries(&fuzz.join(dir)).into_iter();
            let name = |file: PathBuf| file.file_stem().unwrap().to_str().unwrap().to_owned();
            files.map(name).collect()
        };
        let targets = names("fuzz_targets");
        assert_eq!(names("corpus"), targets);
        assert!(names("dictionaries").is_subset(&targets));
        let [manifest, readme] =
            ["Cargo.toml", "README.md"].map(|name| fs::read_to_string(fuzz.join(name)).unwrap());
        for name in &targets {
            let path = format!("path = \"fuzz_targets/{name}.rs\"");
            assert!(manifest.contains(&path), "{name}");
            assert!(readme.contains(&format!("\n| `{name}` | ")), "{name}");
        }
    }
}
