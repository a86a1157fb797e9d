//! House rules about text that neither the compiler nor clippy knows.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::rust;
use crate::shell;
use crate::workspace::Workspace;

/// A longer file is split, unless it is a list; a list says so near its top with `TABLE`.
const LINES_MAX: usize = 900;
const TABLE: &str = concat!("tidy: ", "a table");
/// How far down `TABLE` may stand.
const TABLE_LINES_MAX: usize = 15;
/// A crate that says less about itself says nothing.
const MODULE_DOC_BYTES_MIN: usize = 30;

// The words are cut in two, or this file would break its own rules.
const UNFINISHED_MACROS: [&str; 2] = [concat!("to", "do!"), concat!("unimple", "mented!")];
const UNFINISHED_WORDS: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];
const MACHINE_PATHS: [&str; 4] = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Use", "rs/"), concat!("/wo", "rk/")];
const WORKPLACE_WORDS: [&str; 5] = [
    concat!("work", "tree"),
    concat!("working ", "paper"),
    concat!("sub", "agent"),
    concat!("issue ", "text"),
    concat!("the ", "brief says"),
];

/// A name that goes around a check, and the only files whose code may say it, each once.
struct SideDoor {
    name: &'static str,
    what: &'static str,
    files: &'static [&'static str],
}

const SIDE_DOORS: [SideDoor; 1] = [SideDoor {
    name: "public_route",
    what: "makes a permit without a decision",
    // Where it is defined, where the kernel has read the route's table, and where engines are tried without a kernel.
    files: &[
        "crates/policy/src/decide.rs",
        "crates/kernel/src/serve.rs",
        "crates/engines/src/bench.rs",
        "crates/lifecycle/src/shell/walk.rs",
    ],
}];

/// One tracked text.
struct Text {
    path: String,
    content: String,
}

/// Checks every tracked text and prints what breaks a rule.
pub(crate) fn check() -> Result<(), String> {
    let texts = texts_of(&shell::root())?;
    let paths: BTreeSet<&str> = texts.iter().map(|text| text.path.as_str()).collect();
    let mut faults: Vec<String> = texts.iter().flat_map(|text| faults_of(text, &paths)).collect();
    faults.extend(SIDE_DOORS.iter().flat_map(|door| faults_of_door(door, &texts)));
    for one in Workspace::load()?.crates {
        faults.extend(faults_of_crate(&one.name, &one.directory)?);
    }
    if faults.is_empty() {
        println!("tidy: {} texts in order", texts.len());
        return Ok(());
    }
    for fault in &faults {
        eprintln!("tidy: {fault}");
    }
    Err(format!("{} places break a house rule", faults.len()))
}

/// Every text of the tree, but for what `.gitignore` names. Git itself is not asked: a fresh machine may lack it.
fn texts_of(root: &Path) -> Result<Vec<Text>, String> {
    let mut texts = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let shown = root.join(&folder);
        let unreadable = |error: std::io::Error| format!("could not read `{}`: {error}", shown.display());
        for entry in fs::read_dir(&shown).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            // The last two are written by cargo and by the Apache foundation.
            if folder.is_empty() && (name.starts_with("target") || matches!(&*name, ".git" | "keyward-data" | "Cargo.lock" | "LICENSE")) {
                continue;
            }
            if entry.file_type().map_err(unreadable)?.is_dir() {
                folders.push(path);
            } else if let Ok(content) = fs::read_to_string(root.join(&path)) {
                texts.push(Text { path, content });
            }
        }
    }
    texts.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(texts)
}

fn faults_of(text: &Text, paths: &BTreeSet<&str>) -> Vec<String> {
    let mut faults = Vec::new();
    let rust = text.path.ends_with(".rs");
    let prose = text.path.ends_with(".md");
    let lines = text.content.lines().count();
    let is_table = || text.content.lines().take(TABLE_LINES_MAX).any(|line| line.contains(TABLE));
    if (rust || prose) && lines > LINES_MAX && !is_table() {
        faults
            .push(format!("{}: {lines} lines, more than {LINES_MAX}; split it, or, if it is a list, say `{TABLE}` at its top", text.path));
    }
    if rust {
        let code = rust::code_and_tests_of(&text.content);
        faults.extend(places(text, &code, &UNFINISHED_MACROS, "is unfinished code"));
    }
    faults.extend(places(text, &text.content, &UNFINISHED_WORDS, "announces instead of doing"));
    faults.extend(places(text, &text.content, &MACHINE_PATHS, "is a path of one machine"));
    faults.extend(places(text, &text.content, &WORKPLACE_WORDS, "is about the workplace"));
    for (number, line) in text.content.lines().enumerate() {
        if !(prose || rust && line.trim_start().starts_with("//")) {
            continue;
        }
        for document in documents_in(line).filter(|document| !is_there(document, paths)) {
            faults.push(format!("{}:{}: names `{document}`, which is not here", text.path, number + 1));
        }
    }
    faults
}

fn faults_of_door(door: &SideDoor, texts: &[Text]) -> Vec<String> {
    let mut faults = Vec::new();
    for text in texts.iter().filter(|text| text.path.ends_with(".rs") && text.path.starts_with("crates/")) {
        let said = rust::words_of(&rust::code_of(&text.content)).filter(|word| *word == door.name).count();
        let may = usize::from(door.files.contains(&text.path.as_str()));
        if said != may {
            faults.push(format!("{}: says `{}` {said} times, not {may}: it {}", text.path, door.name, door.what));
        }
    }
    for file in door.files.iter().filter(|file| !texts.iter().any(|text| text.path == **file)) {
        faults.push(format!("{file}: may say `{}` and is not here", door.name));
    }
    faults
}

fn places(text: &Text, content: &str, words: &[&str], what: &str) -> Vec<String> {
    let found = |line: &str, word: &str| {
        line.match_indices(word).any(|(at, _)| {
            let before = line.get(..at).unwrap_or_default();
            let after = line.get(at + word.len()..).unwrap_or_default();
            let whole = |letter: char| letter.is_alphanumeric() || letter == '_';
            !(before.ends_with(whole) || word.ends_with(whole) && after.starts_with(whole))
        })
    };
    let mut faults = Vec::new();
    for (number, line) in content.lines().enumerate() {
        for word in words.iter().filter(|word| found(line, word)) {
            faults.push(format!("{}:{}: `{word}` {what}", text.path, number + 1));
        }
    }
    faults
}

/// Names of documents in a line; what belongs to a web address is left out.
fn documents_in(line: &str) -> impl Iterator<Item = &str> {
    line.split(|letter: char| letter.is_whitespace() || matches!(letter, '`' | '(' | ')' | '[' | ']' | '"' | ',' | '<' | '>'))
        .filter(|word| !word.contains("://"))
        .map(|word| word.split_once('#').map_or(word, |(before, _)| before))
        .map(|word| word.trim_end_matches(['.', ':', ';', '\'']))
        .filter(|word| {
            word.strip_suffix(".md").is_some_and(|stem| {
                let plain = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '-' | '/' | '.');
                !stem.is_empty() && stem.chars().all(plain)
            })
        })
}

fn is_there(document: &str, paths: &BTreeSet<&str>) -> bool {
    let document = document.trim_start_matches("./").trim_start_matches("../");
    paths.iter().any(|path| path.strip_suffix(document).is_some_and(|before| before.is_empty() || before.ends_with('/')))
}

fn faults_of_crate(name: &str, directory: &Path) -> Result<Vec<String>, String> {
    let mut faults = Vec::new();
    let roots: Vec<_> = ["src/lib.rs", "src/main.rs"].iter().map(|root| directory.join(root)).filter(|root| root.is_file()).collect();
    for root in &roots {
        let source = fs::read_to_string(root).map_err(|error| format!("could not read `{}`: {error}", root.display()))?;
        if !is_documented(&source) {
            let file = root.file_name().unwrap_or_default().display();
            faults.push(format!("crate `{name}`: `{file}` does not open by saying what it is for"));
        }
    }
    if roots.is_empty() {
        faults.push(format!("crate `{name}`: has neither `src/lib.rs` nor `src/main.rs`"));
    }
    let manifest = directory.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).map_err(|error| format!("could not read `{}`: {error}", manifest.display()))?;
    if !text.contains("[lints]\nworkspace = true") {
        faults.push(format!("crate `{name}`: does not take the lints of the workspace"));
    }
    Ok(faults)
}

fn is_documented(source: &str) -> bool {
    let doc: usize = source.lines().map_while(|line| line.strip_prefix("//!")).map(|line| line.trim().len()).sum();
    doc >= MODULE_DOC_BYTES_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, content: &str) -> Vec<String> {
        let text = Text { path: path.to_owned(), content: content.to_owned() };
        faults_of(&text, &BTreeSet::from(["README.md", "docs/format.md"]))
    }

    #[test]
    fn the_texts_are_those_of_the_tree() {
        let texts = texts_of(&shell::root()).unwrap();
        let paths: BTreeSet<&str> = texts.iter().map(|text| text.path.as_str()).collect();
        for path in ["README.md", "xtask/src/tidy.rs", "crates/targets/src/postgres.rs", ".ci/run"] {
            assert!(paths.contains(path), "{path}");
        }
        assert!(!paths.iter().any(|path| path.starts_with("target") || path.starts_with(".git/") || *path == "Cargo.lock"));
    }

    #[test]
    fn a_long_file_is_found_unless_it_is_a_table() {
        let long = "x\n".repeat(LINES_MAX + 1);
        assert_eq!(check("a.rs", &long).len(), 1);
        assert_eq!(check("a.md", &long).len(), 1);
        assert!(check("a.csv", &long).is_empty());
        assert!(check("a.rs", &"x\n".repeat(LINES_MAX)).is_empty());
        assert!(check("a.rs", &format!("//! {TABLE}\n{long}")).is_empty());
        assert_eq!(check("a.rs", &format!("{long}//! {TABLE}\n")).len(), 1);
    }

    #[test]
    fn unfinished_code_is_found_in_code_only() {
        for word in UNFINISHED_MACROS {
            assert_eq!(check("a.rs", &format!("fn f() {{ {word}() }}")), [format!("a.rs:1: `{word}` is unfinished code")]);
            assert_eq!(check("a.rs", &format!("#[cfg(test)]\nmod t {{ fn f() {{ {word}() }} }}")).len(), 1);
            assert!(check("a.rs", &format!("// never {word}(x)\n")).is_empty());
        }
    }

    #[test]
    fn words_are_found_whole() {
        for (word, what) in
            [(UNFINISHED_WORDS[0], "announces"), (MACHINE_PATHS[0], "path"), (MACHINE_PATHS[3], "path"), (WORKPLACE_WORDS[0], "workplace")]
        {
            let found = check("notes.txt", &format!("first\nsee {word} here\n"));
            assert!(found.len() == 1 && found[0].contains("notes.txt:2") && found[0].contains(what), "{found:?}");
        }
        assert!(check("notes.txt", &format!("x{}x\n", UNFINISHED_WORDS[0])).is_empty());
        assert!(check("notes.txt", &format!("a/b{}x\n", MACHINE_PATHS[3])).is_empty());
    }

    #[test]
    fn a_side_door_is_used_where_it_may_be_and_once() {
        let door = SideDoor { name: "open_up", what: "is a trick", files: &["crates/a/src/lib.rs"] };
        let faults = |texts: &[(&str, &str)]| {
            let texts: Vec<_> = texts.iter().map(|(path, content)| Text { path: (*path).into(), content: (*content).into() }).collect();
            faults_of_door(&door, &texts)
        };
        let well = ("crates/a/src/lib.rs", "// open_up\nfn f() { P::open_up() }");
        assert_eq!(faults(&[well]), Vec::<String>::new());
        for harmless in
            ["// open_up()", "fn f() { \"open_up\"; reopen_up(); open_up_x() }", "#[cfg(test)]\nmod t { fn f() { P::open_up() } }"]
        {
            assert_eq!(faults(&[well, ("crates/b/src/lib.rs", harmless)]), Vec::<String>::new(), "{harmless}");
        }
        for use_of_it in ["fn f() { Permit::open_up() }", "use x::P as Q;\nfn f() { Q ::\n open_up() }", "fn f() { let g = <P>::open_up; }"]
        {
            assert_eq!(
                faults(&[well, ("crates/b/src/lib.rs", use_of_it)]),
                ["crates/b/src/lib.rs: says `open_up` 1 times, not 0: it is a trick"]
            );
        }
        let twice = faults(&[("crates/a/src/lib.rs", "fn f() { P::open_up() }\nfn g() { P::open_up() }")]);
        assert_eq!(twice, ["crates/a/src/lib.rs: says `open_up` 2 times, not 1: it is a trick"]);
        assert_eq!(faults(&[("crates/a/src/lib.rs", "")]).len(), 1);
        assert_eq!(faults(&[]), ["crates/a/src/lib.rs: may say `open_up` and is not here"]);
    }

    #[test]
    fn documents_that_are_named_must_be_here() {
        assert!(check("a.md", "see `docs/format.md`, [map](README.md#top) and format.md.").is_empty());
        assert!(check("docs/a.md", "see ../README.md").is_empty());
        assert!(check("a.md", "see https://example.invalid/absent.md").is_empty());
        assert!(check("a.rs", "let x = \"absent.md\";").is_empty());
        assert_eq!(check("a.md", "see `absent.md`.").len(), 1);
        assert_eq!(check("a.md", "see my-format.md").len(), 1);
        assert_eq!(check("a.rs", "//! see absent.md").len(), 1);
    }

    #[test]
    fn a_crate_says_what_it_is_for() {
        assert!(is_documented("//! Words that all the other crates share.\n\nmod x;\n"));
        for source in ["", "mod x;\n", "//! short\n", "mod x;\n//! Words that all the other crates share.\n"] {
            assert!(!is_documented(source), "{source}");
        }
    }
}
