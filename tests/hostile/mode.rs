//! What the program does wrong.

use std::path::Path;

use serde::Deserialize;

/// A misbehaviour, by the name that the program is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// None: a machine as it should be.
    Honest,

    // The control socket.
    /// Nothing is ever said, by machine or agent.
    Silent,
    /// The process ends at once, with an escape sequence as its last words.
    Quits,
    /// The control socket is closed at once; the process goes on.
    HangsUp,
    /// The control socket is closed once the container runs; machine and agent go on.
    HangsUpLater,
    /// The process ends once the container runs; its ends of the control socket and of the log stay
    /// open, on their way to the host's end of a stream that nobody reads.
    KeepsItsEnds,
    /// The machine fails to start, in a text that is long and holds escape sequences.
    Fails,
    /// The machine resets once the container runs, in such a text.
    Resets,
    /// The machine is switched off while the container is created.
    PowersOff,
    /// Packets of another version of the protocol.
    OtherVersion,
    /// Packets that hold no message.
    Malformed,
    /// A packet longer than any message.
    Oversize,
    /// A message of thousands of arrays, one in another.
    Nested,
    /// Packets with descriptors that nobody has asked for.
    Descriptors,
    /// Events without a pause.
    EventFlood,
    /// Lines of the log without a pause, with escape sequences and without an end.
    LogFlood,
    /// The console without a pause.
    ConsoleFlood,

    // The agent's answers.
    /// The agent is of another version.
    OtherAgent,
    /// The agent closes each connection when a container is created.
    AgentHangsUp,
    /// Bytes that are no frames.
    Garbage,
    /// Frames longer than any answer, and than any number of bytes that follow.
    OversizeFrames,
    /// A frame that ends before its length.
    TruncatedFrame,
    /// Messages of groups, one in another, in lists and statistics.
    NestedAnswers,
    /// Lists and statistics of as many elements as fit in 4 MiB.
    LongAnswers,
    /// Lists and statistics of as many unknown fields as are read.
    UnknownFields,
    /// Lists of as many processes as are read.
    ManyProcesses,
    /// Escape sequences in every text.
    Escapes,
    /// Every call is refused in such a text.
    Refusals,
    /// Answers that nobody waits for, without a pause.
    AnswerFlood,
    /// OOM kills and exits, without a pause.
    AgentEventFlood,

    // Calls that are never answered.
    /// The agent answers the first call alone.
    MuteOnceReady,
    /// The agent answers nothing once a container runs.
    MuteOnceStarted,
    /// Starts, execs and signals are never done; the rest is answered.
    NeverDone,

    /// Signals are answered and end nothing.
    Immortal,
    /// Once a container runs, the agent denies that there is one.
    Denies,

    // Streams and ends.
    /// The streams of a process that has ended stay open.
    KeepsStreams,
    /// Output without a pause, on every stream, which are never closed.
    OutputFlood,
    /// The streams are closed as soon as they are opened.
    ClosedStreams,
    /// The init process ends before its start.
    EndsEarly,
    /// Each process ends twice, with other exit codes.
    EndsTwice,
    /// Ends of containers and processes that do not exist.
    EndsOfOthers,
    /// Exit codes that no process has.
    OddExitCodes,
}

impl Mode {
    /// The mode in a program's name, `hostile-MODE`.
    pub fn of(program: &Path) -> Self {
        let name = program.file_name().unwrap().to_str().unwrap();
        let mode = name.strip_prefix("hostile-").unwrap();
        serde_json::from_value(mode.into()).unwrap()
    }
}
