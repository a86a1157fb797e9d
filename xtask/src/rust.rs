//! Just enough of Rust's grammar to tell code from comments, strings and tests.

/// The code alone: comments, the insides of literals, and inline test modules are replaced by blanks. Lines stay.
pub(crate) fn code_of(source: &str) -> String {
    without_tests(&without_text(source))
}

/// The code with its tests: comments and the insides of literals are replaced by blanks. Lines stay.
pub(crate) fn code_and_tests_of(source: &str) -> String {
    without_text(source)
}

/// Whether the code names this crate: at the start of a path, or in `use`, `extern crate`.
pub(crate) fn names_crate(code: &str, name: &str) -> bool {
    let mut from = 0;
    while let Some(found) = code.get(from..).and_then(|rest| rest.find(name)) {
        let start = from + found;
        let end = start + name.len();
        let before = code.get(..start).unwrap_or_default();
        let after = code.get(end..).unwrap_or_default();
        from = end;
        if before.ends_with(is_word) || after.starts_with(is_word) {
            continue;
        }
        let before = before.trim_end();
        let rooted = before.ends_with("::") && !before.trim_end_matches("::").ends_with(|last: char| is_word(last) || last == '>');
        let inside_a_path = (before.ends_with("::") && !rooted) || before.ends_with('.');
        if inside_a_path {
            continue;
        }
        let starts_a_path = after.trim_start().starts_with("::");
        let imported = ["use", "extern crate"].iter().any(|word| before.strip_suffix(word).is_some_and(|rest| !rest.ends_with(is_word)));
        if starts_a_path || imported {
            return true;
        }
    }
    false
}

/// The words of code: names, keywords, numbers.
pub(crate) fn words_of(code: &str) -> impl Iterator<Item = &str> {
    code.split(|letter| !is_word(letter)).filter(|word| !word.is_empty())
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

fn without_text(source: &str) -> String {
    let letters: Vec<char> = source.chars().collect();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    let peek = |at: usize| letters.get(at).copied();
    while let Some(letter) = peek(at) {
        let end = match (letter, peek(at + 1)) {
            ('/', Some('/')) => find(&letters, at, |at| peek(at) == Some('\n')),
            ('/', Some('*')) => end_of_comment(&letters, at),
            ('"', _) => end_of_string(&letters, at),
            ('r', Some('"' | '#')) if !code.ends_with(is_word) || code.ends_with('b') => match end_of_raw_string(&letters, at) {
                Some(end) => end,
                None => at,
            },
            ('\'', Some('\\')) => find(&letters, at + 3, |at| peek(at) == Some('\'')) + 1,
            ('\'', Some(_)) if peek(at + 2) == Some('\'') => at + 3,
            _ => at,
        };
        if end == at {
            code.push(letter);
            at += 1;
            continue;
        }
        for hidden in letters.get(at..end.min(letters.len())).unwrap_or_default() {
            code.push(if *hidden == '\n' { '\n' } else { ' ' });
        }
        at = end;
    }
    code
}

fn find(letters: &[char], from: usize, is: impl Fn(usize) -> bool) -> usize {
    (from..letters.len()).find(|at| is(*at)).unwrap_or(letters.len())
}

fn end_of_comment(letters: &[char], start: usize) -> usize {
    let mut depth = 0usize;
    let mut at = start;
    while at < letters.len() {
        match (letters.get(at), letters.get(at + 1)) {
            (Some('/'), Some('*')) => {
                depth += 1;
                at += 2;
            }
            (Some('*'), Some('/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn end_of_string(letters: &[char], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(letter) = letters.get(at) {
        match letter {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// None when this is no raw string but, say, a raw identifier.
fn end_of_raw_string(letters: &[char], start: usize) -> Option<usize> {
    let open = find(letters, start + 1, |at| letters.get(at) != Some(&'#'));
    if letters.get(open) != Some(&'"') {
        return None;
    }
    let hashes = open - start - 1;
    let closes = |at: usize| letters.get(at) == Some(&'"') && (1..=hashes).all(|offset| letters.get(at + offset) == Some(&'#'));
    Some((find(letters, open + 1, closes) + hashes + 1).min(letters.len()))
}

/// Blanks `#[cfg(test)] mod name { … }`.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(found) = rest.find(MARK) {
        let (before, from) = rest.split_at(found);
        kept.push_str(before);
        let item = from.get(MARK.len()..).unwrap_or_default();
        let open = item.find('{');
        let is_module = item.trim_start().starts_with("mod ") && open < item.find(';').or(Some(usize::MAX));
        let length = match open {
            Some(open) if is_module => MARK.len() + open + block(item.get(open..).unwrap_or_default()),
            _ => MARK.len(),
        };
        let (hidden, after) = from.split_at_checked(length).unwrap_or((from, ""));
        kept.extend(hidden.chars().map(|letter| if letter == '\n' { '\n' } else { ' ' }));
        rest = after;
    }
    kept.push_str(rest);
    kept
}

/// The length of a block in braces.
fn block(code: &str) -> usize {
    let mut depth = 0usize;
    for (at, letter) in code.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_tests_are_not_code() {
        for source in [
            "// store::open",
            "/// [`store::Store`]\nfn f() {}",
            "/* a /* store::b */ store::c */",
            r#"let x = "use store; store::open";"#,
            "let x = r#\"a \" store::open\"#;",
            "let x = br\"store::open\";",
            "let q = '\"'; // \" store::open",
            "let q = '\\''; /* store::open */",
            "#[cfg(test)]\nmod tests {\n use store::Store;\n fn f() { { store::open() } }\n}",
        ] {
            assert!(!names_crate(&code_of(source), "store"), "{source}");
        }
    }

    #[test]
    fn code_names_a_crate_in_these_ways() {
        for source in [
            "use store::Store;",
            "use store;",
            "use store as other;",
            "extern crate store;",
            "pub use store::{Key, Tx};",
            "fn f(tx: &mut store::Tx) {}",
            "fn f() -> ::store::Tx {}",
            "let x: Vec<store::Key> = y;",
            "fn f<'a>(x: &'a store::Tx) {}",
            "let c = 'x'; store::open(c)",
            "#[cfg(test)]\nmod tests;\nuse store::Store;",
            "#[cfg(test)]\nmod tests { const X: char = '}'; }\nuse store::Store;",
            "let r#type = 1; store::open()",
        ] {
            assert!(names_crate(&code_of(source), "store"), "{source}");
        }
    }

    #[test]
    fn other_things_of_the_same_name_are_no_crate() {
        for source in [
            "crate::store::open()",
            "use super::store::Store;",
            "let store = 1;",
            "self.store.open()",
            "restore::now()",
            "store_path::open()",
            "my_store::open()",
            "mod store;",
            "<T>::store::x",
        ] {
            assert!(!names_crate(&code_of(source), "store"), "{source}");
        }
    }

    #[test]
    fn lines_stay_where_they_are() {
        let source = "a\n/* b\nc */ d\n\"e\nf\" g\n";
        let code = code_of(source);
        assert_eq!(code.lines().count(), source.lines().count());
        assert_eq!(code.lines().nth(2).unwrap().trim(), "d");
        assert_eq!(code.lines().nth(4).unwrap().trim(), "g");
    }

    #[test]
    fn unfinished_text_ends_with_the_file() {
        for source in ["\"open", "/* open", "r#\"open", "'\\", "'", "#[cfg(test)] mod t {", "r#"] {
            assert_eq!(code_of(source).chars().count(), source.chars().count(), "{source}");
        }
    }
}
