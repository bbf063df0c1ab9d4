//! Words that this code does without, and sleeps in tests. Works on tokens, so prose is free.
//! Invariant: a word is judged by where it stands; only tests may `unwrap`, and they may not sleep.

use super::Finding;
use super::sizes::{Kind, Measure};
use super::source::{Is, Source, Token};
use proc_macro2::Delimiter;
use std::path::Path;
use syn::visit::{self, Visit};

const MACROS: [&str; 3] = ["todo", "unimplemented", "dbg"];

/// Endings of type names that say nothing.
const ENDINGS: [&str; 8] = ["Manager", "Helper", "Helpers", "Util", "Utils", "Impl", "Data", "Info"];

/// What CloudEvents calls the content of an event.
const TERM: &str = "Data";

/// Names of modules that say nothing.
const MODULES: [&str; 7] = ["manager", "helper", "helpers", "util", "utils", "misc", "impl"];

/// What `#[ignore]` means here, so that it can mean nothing else.
const SLOW: &str = "\"slow: ";

pub(super) fn check(source: &Source) -> Vec<Finding> {
    if source.generated {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for at in 0..source.tokens.len() {
        let line = source.tokens[at].line;
        if let Some((found, expected)) = judge(&source.tokens[at..], source.in_test(line)) {
            findings.push(Finding::new(&source.path, line, found, expected));
        }
    }
    let mut names = Names { path: &source.path, findings };
    names.visit_file(&source.file);
    names.module_of_file();
    names.findings
}

/// What is wrong with the token that begins `rest`, and what was expected.
fn judge(rest: &[Token], in_test: bool) -> Option<(String, &'static str)> {
    match rest {
        [pound, ..] if pound.is_mark('#') => attribute(rest),
        [name, bang, open, ..] if bang.is_mark('!') && matches!(open.is, Is::Open(_)) => {
            let name = MACROS.iter().find(|word| name.is_word(word))?;
            Some((format!("`{name}!`"), "the real thing"))
        }
        [dot, unwrap, open, close, ..]
            if dot.is_mark('.')
                && unwrap.is_word("unwrap")
                && open.is == Is::Open(Delimiter::Parenthesis)
                && close.is == Is::Close
                && !in_test =>
        {
            Some(("`.unwrap()`".into(), "`?`, or `expect` with the invariant in words"))
        }
        _ => None,
    }
}

fn attribute(rest: &[Token]) -> Option<(String, &'static str)> {
    let body = match rest {
        [_, bang, open, body @ ..] if bang.is_mark('!') && open.is == Is::Open(Delimiter::Bracket) => body,
        [_, open, body @ ..] if open.is == Is::Open(Delimiter::Bracket) => body,
        _ => return None,
    };
    if let [ignore, next @ ..] = body
        && ignore.is_word("ignore")
        && !matches!(next, [_, Token { is: Is::Literal(reason), .. }, ..] if reason.starts_with(SLOW))
    {
        return Some((
            "`#[ignore]`".into(),
            "`#[ignore = \"slow: …\"]`, which full runs include; anything else is not ignored",
        ));
    }
    let mut depth = 1_usize;
    for (at, token) in body.iter().enumerate() {
        match token.is {
            Is::Open(_) => depth += 1,
            Is::Close => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return None;
        }
        let opens = body.get(at + 1).is_some_and(|next| next.is == Is::Open(Delimiter::Parenthesis));
        if token.is_word("allow") && opens {
            return Some(("`#[allow(…)]`".into(), "`#[expect(…, reason = \"…\")]`"));
        }
    }
    None
}

/// How many sleeps the tests of a file hold.
pub(super) fn sleeps(source: &Source) -> Option<Measure> {
    let suite = source.path.iter().any(|part| part.to_string_lossy().starts_with("conformance"));
    let calls = source.tokens.windows(3).filter(|window| {
        let [before, sleep, open] = window else { return false };
        (sleep.is_word("sleep") || sleep.is_word("sleep_until"))
            && open.is == Is::Open(Delimiter::Parenthesis)
            && !before.is_mark('.')
            && !before.is_word("fn")
            && (suite || source.in_test(sleep.line))
    });
    let lines: Vec<usize> = calls.map(|window| window[1].line).collect();
    let first = *lines.first()?;
    Some(Measure {
        kind: Kind::Sleep,
        path: source.path.clone(),
        name: String::new(),
        line: first,
        value: lines.len(),
    })
}

/// Looks at the names of types and modules.
struct Names<'a> {
    path: &'a Path,
    findings: Vec<Finding>,
}

impl Names<'_> {
    fn of_type(&mut self, ident: &syn::Ident) {
        let name = ident.to_string();
        if name == TERM {
            return;
        }
        if let Some(ending) = ENDINGS.iter().find(|ending| name.ends_with(*ending)) {
            let expected = format!("a name that says what it is, without `{ending}`");
            let line = ident.span().start().line;
            self.findings.push(Finding::new(self.path, line, format!("the type `{name}`"), expected));
        }
    }

    fn of_module(&mut self, name: &str, line: usize) {
        if MODULES.contains(&name) {
            let expected = "a name that says what is inside";
            self.findings.push(Finding::new(self.path, line, format!("the module `{name}`"), expected));
        }
    }

    fn module_of_file(&mut self) {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        self.of_module(&stem, 1);
    }
}

impl<'ast> Visit<'ast> for Names<'_> {
    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.of_type(&item.ident);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.of_type(&item.ident);
    }

    fn visit_item_union(&mut self, item: &'ast syn::ItemUnion) {
        self.of_type(&item.ident);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.of_type(&item.ident);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.of_type(&item.ident);
        visit::visit_item_trait(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.content.is_some() {
            self.of_module(&item.ident.to_string(), item.ident.span().start().line);
        }
        visit::visit_item_mod(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let source = Source::parse(Path::new(path), text).unwrap();
        check(&source).iter().map(|finding| format!("{} {}", finding.line, finding.found)).collect()
    }

    #[test]
    fn each_banned_word_is_found_with_its_line() {
        let text = "\
#![allow(dead_code)]
fn a() { todo!() }
fn b() { unimplemented!(\"x\") }
fn c() { vec![dbg!(1)].first().unwrap(); }
#[cfg_attr(test, allow(unused))]
fn d() {}
";
        let expected = [
            "1 `#[allow(…)]`",
            "2 `todo!`",
            "3 `unimplemented!`",
            "4 `dbg!`",
            "4 `.unwrap()`",
            "5 `#[allow(…)]`",
        ];
        assert_eq!(found("src/a.rs", text), expected);
    }

    #[test]
    fn prose_strings_and_lookalikes_are_free() {
        let text = "\
//! Says todo!(), .unwrap() and #[allow(x)].
#[expect(unused, reason = \"allow (it)\")]
fn allow(todo: bool) -> &'static str { if todo != true { allow(todo) } else { \"todo!() .unwrap()\" } }
fn b(x: Option<u8>) -> u8 { x.unwrap_or(1) }
";
        assert!(found("src/a.rs", text).is_empty(), "{:?}", found("src/a.rs", text));
    }

    #[test]
    fn tests_may_unwrap() {
        assert!(found("src/a.rs", "#[test]\nfn a() { Some(1).unwrap(); }\n").is_empty());
        assert!(found("crates/a/tests/b.rs", "fn a() { Some(1).unwrap(); }\n").is_empty());
    }

    #[test]
    fn names_that_say_nothing_are_found() {
        let text = "struct TopicManager;\nenum Info {}\ntrait FooImpl {}\ntype RowData = u8;\nmod utils {}\nstruct Database;\nenum Data {}\n";
        let found = found("src/helpers.rs", text);
        assert_eq!(found.len(), 6, "{found:?}");
        assert!(found.iter().all(|finding| !finding.contains("Database")), "{found:?}");
    }

    #[test]
    fn a_test_is_ignored_for_being_slow_or_not_at_all() {
        let text = "#[test]\n#[ignore]\nfn a() {}\n#[test]\n#[ignore = \"flaky\"]\nfn b() {}\n#[test]\n#[ignore = \"slow: a minute\"]\nfn c() {}\n";
        assert_eq!(found("src/a.rs", text), ["2 `#[ignore]`", "5 `#[ignore]`"]);
    }

    #[test]
    fn sleeps_are_counted_in_tests_and_suites_alone() {
        let sleeping = "async fn a() {\n    tokio::time::sleep(x).await;\n    std::thread::sleep(y);\n    clock.sleep(z);\n}\n";
        let count = |path: &str| {
            sleeps(&Source::parse(Path::new(path), sleeping).unwrap()).map(|it| (it.value, it.line))
        };
        assert_eq!(count("crates/a/tests/b.rs"), Some((2, 2)));
        assert_eq!(count("crates/a/src/conformance/b.rs"), Some((2, 2)));
        assert_eq!(count("crates/a/src/b.rs"), None);
    }
}
