//! rvm: an OCI runtime that puts every container in its own virtual machine.

mod logging;
mod verbs;

use std::process::ExitCode;
use std::time::Instant;

use rvm::cli;

use cli::{Cli, Verb};

fn main() -> ExitCode {
    rvm_sys::process_memory::share_one_heap();
    let cli = match cli::read() {
        Ok(cli) => cli,
        Err(usage) => {
            // If the stream is closed, nobody reads the message.
            let _ = usage.print();
            return ExitCode::from(u8::from(usage.use_stderr()));
        }
    };
    let (failed, code) = failure(&cli.verb);
    let verb = cli.verb.name();
    let started = Instant::now();
    let result = verbs::keep_descriptors(&cli.verb)
        .and_then(|()| logging::start(&cli.global))
        .and_then(|()| run(cli));
    tracing::debug!("rvm {verb} ended after {:.1?}", started.elapsed());
    match result {
        Ok(code) => code,
        Err(error) => {
            logging::report(&format!("{failed} failed: {error:#}"));
            ExitCode::from(code)
        }
    }
}

/// The beginning of the message about a verb that failed, and the exit code. Those of exec are
/// runc's: engines tell its exit code from the program's.
fn failure(verb: &Verb) -> (String, u8) {
    match verb {
        Verb::Exec(_) | Verb::ExecMonitor(_) => ("exec".to_owned(), 255),
        other => (format!("rvm {}", other.name()), 1),
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let global = &cli.global;
    let name = cli.verb.name();
    let version = env!("CARGO_PKG_VERSION");
    tracing::debug!(
        "rvm {name}: version {version}, state in {}",
        global.root.display()
    );
    match cli.verb {
        Verb::Create(args) => verbs::create::run(global, &args),
        Verb::Start(args) => verbs::start::run(global, &args),
        Verb::State(args) => verbs::state::run(global, &args),
        Verb::Kill(args) => verbs::kill::run(global, &args),
        Verb::Delete(args) => verbs::delete::run(global, &args),
        Verb::Run(args) => verbs::run::run(global, &args),
        Verb::Exec(args) => verbs::exec::run(global, *args),
        Verb::Ps(args) => verbs::ps::run(global, &args),
        Verb::Pause(args) => verbs::pause::pause(global, &args),
        Verb::Resume(args) => verbs::pause::resume(global, &args),
        Verb::Update(args) => verbs::update::run(global, &args),
        Verb::Events(args) => verbs::events::run(global, &args),
        Verb::Spec(args) => verbs::spec::run(&args),
        Verb::Features => verbs::features::run(),
        Verb::Checkpoint(args) => verbs::checkpoint::checkpoint(global, &args),
        Verb::Restore(args) => verbs::checkpoint::restore(global, *args),
        Verb::Fork(args) => verbs::fork::run(global, &args),
        Verb::List(args) => verbs::list::run(global, &args),
        Verb::Check => verbs::check::run(global),
        Verb::Overhead(args) => verbs::overhead::run(global, &args),
        Verb::Template(args) => verbs::template::run(global, &args.verb),
        Verb::Monitor(args) => verbs::monitor::run(global, args),
        Verb::ExecMonitor(args) => verbs::exec_monitor::run(global, args),
    }
}
