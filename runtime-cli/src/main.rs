//! rvm: an OCI runtime that puts every container in its own virtual machine.

mod cli;
mod logging;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Verb};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let name = cli.verb.name();
    let result = logging::start(&cli.global).and_then(|()| run(cli));
    match result {
        Ok(code) => code,
        Err(error) => {
            logging::report(&format!("rvm {name} failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let global = &cli.global;
    match cli.verb {
        Verb::Create(args) => verbs::create::run(global, &args),
        Verb::Start(args) => verbs::start::run(global, &args),
        Verb::State(args) => verbs::state::run(global, &args),
        Verb::Kill(args) => verbs::kill::run(global, &args),
        Verb::Delete(args) => verbs::delete::run(global, &args),
        Verb::Run(args) => verbs::run::run(global, &args),
        Verb::List(args) => verbs::list::run(global, &args),
        Verb::Check => verbs::check::run(global),
        Verb::Monitor(args) => verbs::monitor::run(global, args),
    }
}
