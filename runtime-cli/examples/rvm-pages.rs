//! Writes rvm's manual pages and shell completions below a directory, each to where programs look
//! for it below a share directory. `make build` runs this, so that rvm need not carry what makes
//! them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Arg, Command};
use clap_complete::{Generator, Shell};
use clap_mangen::Man;

/// Of the manual: commands for the system's administrator.
const SECTION: &str = "8";

fn main() -> anyhow::Result<()> {
    let share = std::env::args_os().nth(1).map(PathBuf::from);
    let share = share.context("usage: rvm-pages DIRECTORY")?;
    let mut command = rvm::cli::command().name("rvm");
    command.build();

    let man = directory(&share, "man/man8")?;
    write_pages(&command, &man)?;
    for (shell, place) in [
        (Shell::Bash, "bash-completion/completions"),
        (Shell::Zsh, "zsh/site-functions"),
        (Shell::Fish, "fish/vendor_completions.d"),
    ] {
        // Some shells find a command's completions by the file's name.
        let name = match shell {
            Shell::Bash => "rvm".to_owned(),
            other => other.file_name("rvm"),
        };
        let path = directory(&share, place)?.join(name);
        let mut file = File::create(&path).with_context(|| path.display().to_string())?;
        clap_complete::generate(shell, &mut completed(), "rvm", &mut file);
    }
    Ok(())
}

/// The command without the verbs that nobody types.
fn completed() -> Command {
    let whole = rvm::cli::command();
    Command::new("rvm")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .args(whole.get_arguments().filter(is_own))
        .subcommands(verbs(&whole))
}

/// The verbs of a command, without what clap adds: it adds that again.
fn verbs(command: &Command) -> Vec<Command> {
    let typed = (command.get_subcommands())
        .filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
        .map(|verb| {
            let arguments = verb.get_arguments().filter(is_own);
            // clap wants a name that lives as long as the program.
            Command::new(&*verb.get_name().to_owned().leak())
                .about(verb.get_about().cloned().unwrap_or_default())
                .args(arguments.filter(|argument| !argument.is_global_set()))
                .subcommands(verbs(verb))
        });
    typed.collect()
}

fn is_own(argument: &&Arg) -> bool {
    argument.get_id() != "help"
}

fn directory(share: &Path, place: &str) -> anyhow::Result<PathBuf> {
    let path = share.join(place);
    fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// A page for the command, and one for each of its verbs.
fn write_pages(command: &Command, dir: &Path) -> anyhow::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let path = dir.join(format!("{name}.{SECTION}"));
    let mut file = File::create(&path).with_context(|| path.display().to_string())?;
    let page = Man::new(command.clone())
        .section(SECTION)
        .manual("rvm")
        .source(format!("rvm {}", env!("CARGO_PKG_VERSION")));
    page.render(&mut file)
        .with_context(|| path.display().to_string())?;
    command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
        .try_for_each(|verb| write_pages(verb, dir))
}
