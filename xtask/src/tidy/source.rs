//! One Rust file as tidy sees it: syntax, tokens in a row, and which lines are tests. Invariant: a word
//! in a string or a comment is never taken for code.

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Meta};

/// Where a generated file says that it is.
const HEAD_LINES: usize = 12;

/// A parsed file.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
    pub(super) file: syn::File,
    pub(super) tokens: Vec<Token>,
    /// Written by a program, which says so in its first lines.
    pub(super) generated: bool,
    /// All of it is tests.
    whole: bool,
    tests: Vec<RangeInclusive<usize>>,
}

/// A token, with its line.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) line: usize,
    pub(super) is: Is,
}

/// What a token is; the ends of a group are tokens of their own.
#[derive(Debug, PartialEq)]
pub(super) enum Is {
    Word(String),
    Literal(String),
    Mark(char, Spacing),
    Open(Delimiter),
    Close,
}

impl Source {
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let file = syn::parse_file(text).map_err(|error| error.to_string())?;
        let mut tokens = Vec::new();
        flatten(TokenStream::from_str(text).map_err(|error| error.to_string())?, &mut tokens);
        let mut tests = Tests(Vec::new());
        tests.visit_file(&file);
        Ok(Source {
            path: path.to_path_buf(),
            text: text.to_owned(),
            tokens,
            generated: text.lines().take(HEAD_LINES).any(|line| line.contains("@generated")),
            whole: path.iter().any(|part| part == "tests" || part == "tests.rs"),
            tests: tests.0,
            file,
        })
    }

    /// Whether a line is part of a test.
    pub(super) fn in_test(&self, line: usize) -> bool {
        self.whole || self.tests.iter().any(|range| range.contains(&line))
    }
}

impl Token {
    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(&self.is, Is::Word(found) if found == word)
    }

    pub(super) fn is_mark(&self, mark: char) -> bool {
        matches!(self.is, Is::Mark(found, _) if found == mark)
    }
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        let is = match tree {
            TokenTree::Ident(ident) => Is::Word(ident.to_string()),
            TokenTree::Literal(literal) => Is::Literal(literal.to_string()),
            TokenTree::Punct(punct) => Is::Mark(punct.as_char(), punct.spacing()),
            TokenTree::Group(group) => {
                tokens.push(Token { line, is: Is::Open(group.delimiter()) });
                flatten(group.stream(), tokens);
                tokens.push(Token { line: group.span_close().start().line, is: Is::Close });
                continue;
            }
        };
        tokens.push(Token { line, is });
    }
}

/// Collects the lines of tests.
struct Tests(Vec<RangeInclusive<usize>>);

impl Tests {
    fn look(&mut self, attributes: &[Attribute], item: &impl Spanned) {
        if attributes.iter().any(marks_test) {
            let span = item.span();
            self.0.push(span.start().line..=span.end().line);
        }
    }
}

impl<'ast> Visit<'ast> for Tests {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.look(&item.attrs, item);
        visit::visit_item_mod(self, item);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.look(&item.attrs, item);
        visit::visit_item_fn(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.look(&item.attrs, item);
        visit::visit_item_impl(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.look(&item.attrs, item);
        visit::visit_impl_item_fn(self, item);
    }
}

/// `#[test]`, `#[tokio::test(…)]`, `#[cfg(test)]` and `#[cfg(all(test, …))]`.
fn marks_test(attribute: &Attribute) -> bool {
    let path = attribute.path();
    if path.segments.last().is_some_and(|last| last.ident == "test") {
        return true;
    }
    let Meta::List(list) = &attribute.meta else { return false };
    let condition: String = list.tokens.to_string().split_whitespace().collect();
    path.is_ident("cfg") && (condition == "test" || condition.starts_with("all(test,"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_tests_are_told_from_the_others() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n#[tokio::test(flavor = \"x\")]\nasync fn c() {}\n#[cfg(not(test))]\nfn d() {}\n";
        let source = Source::parse(Path::new("src/a.rs"), text).unwrap();
        let lines: Vec<usize> = (1..=9).filter(|line| source.in_test(*line)).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 7]);
        assert!(Source::parse(Path::new("crates/a/tests/b.rs"), text).unwrap().in_test(1));
    }
}
