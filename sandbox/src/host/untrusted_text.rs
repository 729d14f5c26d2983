//! Text that a guest, or a process that a guest may have taken over, has written: cut to a length
//! and rid of what moves a terminal's cursor, before it reaches a message, a log or a terminal.

use rvm_protocol::failure::{Failure, MAX_MESSAGE};

/// The longest text that is shown, in bytes: that of a failure. A hostile peer could otherwise fill
/// the host's log with one message.
pub(crate) const MAX_TEXT: usize = MAX_MESSAGE;

/// Makes a text safe to show: at most [`MAX_TEXT`] bytes, with a space for each control character.
///
/// An escape sequence of a guest could otherwise rewrite root's terminal, a line break could forge
/// a line of the log, and a character that changes the direction of writing could disguise a text.
pub(crate) fn clean(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)]
        .chars()
        .map(|c| if is_harmful(c) { ' ' } else { c })
        .collect()
}

/// Makes a failure's message safe to show. Its code stays.
pub(crate) fn clean_failure(failure: &Failure) -> Failure {
    Failure::new(failure.code(), clean(&failure.to_string()))
}

/// Whether a text is safe to show.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn is_clean(text: &str) -> bool {
    text.len() <= MAX_TEXT && !text.contains(is_harmful)
}

fn is_harmful(c: char) -> bool {
    // Line and paragraph separators, and the marks, embeddings, overrides and isolates of Unicode's
    // bidirectional algorithm (UAX #9): characters of the categories Zl, Zp and Cf, not Cc.
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvm_protocol::failure::Code;

    #[test]
    fn a_text_cannot_move_the_cursor_or_fill_the_log() {
        let text = format!("\u{1b}[2J no such file\n{}", "ä".repeat(MAX_TEXT));
        let clean = clean(&text);
        assert!(clean.len() <= MAX_TEXT && !clean.contains(char::is_control));
        assert!(clean.contains("no such file"));
    }

    #[test]
    fn a_text_cannot_change_the_direction_of_writing_or_break_the_line() {
        let text = "exit\u{9b}2J \u{202e}txt.exe\u{2066}\u{2028}level=info";
        assert_eq!(clean(text), "exit 2J  txt.exe  level=info");
    }

    #[test]
    fn a_failure_keeps_its_code() {
        let cleaned = clean_failure(&Failure::new(Code::NotFound, "gone\u{7}"));
        assert_eq!(cleaned, Failure::new(Code::NotFound, "gone "));
    }
}
