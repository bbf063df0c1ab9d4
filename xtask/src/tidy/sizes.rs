//! Lengths of functions and files. Invariant: tests are no part of a file's length, and a test may be
//! as long as the hard bound of any function.

use super::source::Source;
use std::path::PathBuf;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Lines of a function from its signature to its closing brace: the rule, and the end.
pub(super) const FUNCTION_LINES: usize = 40;
pub(super) const FUNCTION_LINES_MAX: usize = 70;

/// Lines of a file without its tests.
pub(super) const FILE_LINES: usize = 500;

/// Something over its bound, which the list of exceptions may allow.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Measure {
    pub(super) kind: Kind,
    pub(super) path: PathBuf,
    /// Of the function; empty for a file.
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) value: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Function,
    File,
    Sleep,
}

/// What is too long in a file.
pub(super) fn measure(source: &Source) -> Vec<Measure> {
    if source.generated {
        return Vec::new();
    }
    let mut functions = Functions { source, owner: String::new(), measures: Vec::new() };
    functions.visit_file(&source.file);
    let mut measures = functions.measures;
    let lines = source.text.lines().count();
    let value = (1..=lines).filter(|line| !source.in_test(*line)).count();
    if value > FILE_LINES {
        let path = source.path.clone();
        measures.push(Measure { kind: Kind::File, path, name: String::new(), line: 1, value });
    }
    measures
}

struct Functions<'a> {
    source: &'a Source,
    owner: String,
    measures: Vec<Measure>,
}

impl Functions<'_> {
    fn look(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let line = signature.span().start().line;
        let value = body.span().end().line - line + 1;
        let bound = if self.source.in_test(line) { FUNCTION_LINES_MAX } else { FUNCTION_LINES };
        if value > bound {
            let name = format!("{}{}", self.owner, signature.ident);
            let path = self.source.path.clone();
            self.measures.push(Measure { kind: Kind::Function, path, name, line, value });
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.look(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.look(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.look(&item.sig, body);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let outer = std::mem::take(&mut self.owner);
        if let syn::Type::Path(path) = &*item.self_ty
            && let Some(last) = path.path.segments.last()
        {
            self.owner = format!("{}::", last.ident);
        }
        visit::visit_item_impl(self, item);
        self.owner = outer;
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        let outer = std::mem::replace(&mut self.owner, format!("{}::", item.ident));
        visit::visit_item_trait(self, item);
        self.owner = outer;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn measured(text: &str) -> Vec<(Kind, String, usize, usize)> {
        let source = Source::parse(Path::new("src/a.rs"), text).unwrap();
        measure(&source).into_iter().map(|it| (it.kind, it.name, it.line, it.value)).collect()
    }

    fn lines(count: usize) -> String {
        "    step();\n".repeat(count)
    }

    #[test]
    fn a_function_of_forty_lines_passes_and_one_more_is_measured() {
        assert_eq!(measured(&format!("fn a() {{\n{}}}\n", lines(38))), []);
        let text = format!(
            "struct A;\nimpl A {{\n    /// Doc.\n    #[inline]\n    async fn a() {{\n{}}}\n}}\n",
            lines(39)
        );
        assert_eq!(measured(&text), [(Kind::Function, "A::a".into(), 5, 41)]);
    }

    #[test]
    fn a_test_may_be_longer_up_to_the_hard_bound() {
        assert_eq!(measured(&format!("#[test]\nfn a() {{\n{}}}\n", lines(60))), []);
        assert_eq!(measured(&format!("#[test]\nfn a() {{\n{}}}\n", lines(70))).len(), 1);
    }

    #[test]
    fn the_tests_are_no_part_of_a_files_length() {
        let code = "const A: u8 = 1;\n".repeat(500);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "    const A: u8 = 1;\n".repeat(100));
        assert_eq!(measured(&format!("{code}{tests}")), []);
        assert_eq!(
            measured(&format!("{code}{tests}const B: u8 = 1;\n")),
            [(Kind::File, String::new(), 1, 501)]
        );
    }
}
