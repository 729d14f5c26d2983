//! A user at a terminal.

use std::ops::{Deref, DerefMut};
use std::process::{Child, Command};

use crate::command;
use crate::terminal::{self, Terminal};

/// A program at a terminal of its own.
pub struct Session {
    terminal: Terminal,
    child: Child,
}

impl Session {
    /// Runs the command at a new terminal of this size.
    pub fn spawn(mut command: Command, rows: u16, cols: u16) -> Self {
        let (terminal, line) = terminal::open(rows, cols);
        line.attach(&mut command);
        let child = command.spawn().unwrap();
        Self { terminal, child }
    }

    /// Waits for the program's end; returns its exit code.
    pub fn wait(self) -> Option<i32> {
        let Self { terminal, child } = self;
        let reader = std::thread::spawn(|| terminal.drain());
        let code = command::wait(child).status.code();
        reader.join().unwrap();
        code
    }
}

impl Deref for Session {
    type Target = Terminal;

    fn deref(&self) -> &Terminal {
        &self.terminal
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Terminal {
        &mut self.terminal
    }
}
