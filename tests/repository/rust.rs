//! As much of Rust's syntax as the rules need: where code is and where comments and literals are,
//! words and punctuation, and how long functions are.

/// A word, or one character of punctuation (`::` counts as one).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub text: &'a str,
    /// Counted from 1.
    pub line: usize,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// The line of `fn`, counted from 1.
    pub line: usize,
    /// From `fn` to the closing brace, both included.
    pub lines: usize,
}

/// The source with spaces in place of comments and of string and character literals. Lines stay
/// where they are.
pub fn code(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = at + skipped(&chars, at);
        if end == at {
            code.push(chars[at]);
            at += 1;
            continue;
        }
        code.extend(
            chars[at..end]
                .iter()
                .map(|&c| if c == '\n' { c } else { ' ' }),
        );
        at = end;
    }
    code
}

/// The length of the comment or literal that begins here; 0 if none does.
fn skipped(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    let in_word = at > 0 && is_word(chars[at - 1]);
    match rest {
        ['/', '/', ..] => rest.iter().take_while(|&&c| c != '\n').count(),
        ['/', '*', ..] => block_comment(rest),
        ['"', ..] => quoted(rest, '"'),
        ['\'', '\\', ..] => quoted(rest, '\''),
        // Of a lifetime, the third character is no quote.
        ['\'', _, '\'', ..] => 3,
        ['r', '"' | '#', ..] if !in_word => raw_string(&rest[1..]).map_or(0, |length| length + 1),
        ['b' | 'c', 'r', '"' | '#', ..] if !in_word => {
            raw_string(&rest[2..]).map_or(0, |length| length + 2)
        }
        _ => 0,
    }
}

fn block_comment(rest: &[char]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// Of what follows the `r`. None if it is a raw identifier.
fn raw_string(rest: &[char]) -> Option<usize> {
    let hashes = rest.iter().take_while(|&&c| c == '#').count();
    if rest.get(hashes) != Some(&'"') {
        return None;
    }
    let closes = |at: usize| {
        rest[at] == '"' && rest[at + 1..].iter().take_while(|&&c| c == '#').count() >= hashes
    };
    (hashes + 1..rest.len())
        .find(|&at| closes(at))
        .map(|at| at + 1 + hashes)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The tokens of what [`code`] returned.
pub fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for (index, mut rest) in code.lines().enumerate() {
        let line = index + 1;
        while let Some(first) = rest.chars().next() {
            let length = if is_word(first) {
                rest.find(|c| !is_word(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (text, after) = rest.split_at(length);
            if !first.is_whitespace() {
                tokens.push(Token { text, line });
            }
            rest = after;
        }
    }
    tokens
}

/// The functions that have a body, those within others included.
pub fn functions(source: &str) -> Vec<Function> {
    let code = code(source);
    let tokens = tokens(&code);
    let is_named = |pair: &[Token<'_>]| pair[0].text == "fn" && pair[1].text.starts_with(is_word);
    let starts = (0..tokens.len().saturating_sub(1)).filter(|&at| is_named(&tokens[at..at + 2]));
    let measured = starts.filter_map(|at| {
        let end = closing(&tokens[body(&tokens, at)?..])?;
        Some(Function {
            name: tokens[at + 1].text.to_owned(),
            line: tokens[at].line,
            lines: end + 1 - tokens[at].line,
        })
    });
    measured.collect()
}

/// The opening brace of the body of the function whose `fn` is at `at`. None if it has no body.
fn body(tokens: &[Token<'_>], at: usize) -> Option<usize> {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match token.text {
            "(" | "[" => depth += 1,
            ")" | "]" => depth -= 1,
            "{" if depth == 0 => return Some(index),
            ";" if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The line of the brace that closes the one at the start of `tokens`.
fn closing(tokens: &[Token<'_>]) -> Option<usize> {
    let mut depth = 0;
    for token in tokens {
        match token.text {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(token.line);
        }
    }
    None
}

mod tests {
    use super::{Function, code, functions};

    #[test]
    fn comments_and_literals_are_not_code() {
        let source = "a /* b /* c */ d */ \"e \\\" f\" 'g' '\\'' r#\"h \" i\"# &'j k // l\nm";
        let words: Vec<String> = code(source).split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["a", "&'j", "k", "m"]);
    }

    #[test]
    fn a_function_is_measured_from_fn_to_its_closing_brace() {
        let source = "trait T { fn none(a: [u8; 2]) -> [u8; 2]; }\nfn some(\n) {\n  \"}\";\n}\n";
        let some = Function {
            name: "some".to_owned(),
            line: 2,
            lines: 4,
        };
        assert_eq!(functions(source), [some]);
    }
}
