//! Dead files: Rust that no target of Cargo reaches through `mod`. Invariant: every `cfg` counts as on,
//! so a file behind a feature is alive.

use super::Finding;
use super::source::{Is, Source};
use crate::workspace::Workspace;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use syn::visit::{self, Visit};

pub(super) fn check(sources: &[Source], files: &[(PathBuf, String)], workspace: &Workspace) -> Vec<Finding> {
    let mut roots: Vec<PathBuf> = workspace.packages.iter().flat_map(|it| it.roots.clone()).collect();
    roots.extend(files.iter().filter(|(path, _)| path.ends_with("Cargo.toml")).flat_map(|(path, _)| {
        // A package of its own beside the workspace.
        ["src/main.rs", "src/lib.rs", "build.rs"].map(|root| path.with_file_name(root))
    }));
    let is_program = |path: &Path| path.parent().is_some_and(|folder| folder.ends_with("src/bin"));
    roots.extend(sources.iter().map(|source| source.path.clone()).filter(|path| is_program(path)));
    dead(sources, &roots)
}

fn dead(sources: &[Source], roots: &[PathBuf]) -> Vec<Finding> {
    let by_path: BTreeMap<&Path, &Source> = sources.iter().map(|it| (it.path.as_path(), it)).collect();
    let mut alive: BTreeSet<PathBuf> = BTreeSet::new();
    let mut next: Vec<(PathBuf, bool)> = roots.iter().map(|root| (root.clone(), true)).collect();
    while let Some((path, root)) = next.pop() {
        let Some(source) = by_path.get(path.as_path()) else { continue };
        if alive.insert(path) {
            next.extend(named_by(source, root));
        }
    }
    let globs: Vec<(PathBuf, String)> = sources.iter().flat_map(quoted).collect();
    let dead =
        sources.iter().filter(|source| !alive.contains(&source.path) && !is_quoted(&source.path, &globs));
    let expected = "a `mod` line that leads here, or no file";
    dead.map(|source| Finding::new(&source.path, 1, "a file that no target reaches", expected)).collect()
}

/// The files that a file's `mod` and `include!` lines name.
fn named_by(source: &Source, root: bool) -> Vec<(PathBuf, bool)> {
    let folder = source.path.parent().unwrap_or(Path::new("")).to_path_buf();
    let stem = source.path.file_stem().unwrap_or_default();
    let base = if root || stem == "mod" { folder.clone() } else { folder.join(stem) };
    let mut modules = Modules { folder: folder.clone(), base, found: Vec::new() };
    modules.visit_file(&source.file);
    let mut named: Vec<(PathBuf, bool)> = modules.found.into_iter().map(|path| (path, false)).collect();
    for window in source.tokens.windows(4) {
        if let [include, bang, open, literal] = window
            && include.is_word("include")
            && bang.is_mark('!')
            && matches!(open.is, Is::Open(_))
            && let Is::Literal(text) = &literal.is
        {
            named.push((plain(&folder.join(text.trim_matches('"'))), false));
        }
    }
    named
}

struct Modules {
    folder: PathBuf,
    base: PathBuf,
    found: Vec<PathBuf>,
}

impl<'ast> Visit<'ast> for Modules {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let name = item.ident.to_string();
        let name = name.strip_prefix("r#").unwrap_or(&name);
        if item.content.is_some() {
            let outer = self.base.clone();
            self.base.push(name);
            visit::visit_item_mod(self, item);
            self.base = outer;
        } else if let Some(path) = item.attrs.iter().find_map(path_attribute) {
            self.found.push(plain(&self.folder.join(path)));
        } else {
            self.found.push(self.base.join(format!("{name}.rs")));
            self.found.push(self.base.join(name).join("mod.rs"));
        }
    }
}

fn path_attribute(attribute: &syn::Attribute) -> Option<String> {
    let syn::Meta::NameValue(pair) = &attribute.meta else { return None };
    let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }) = &pair.value else { return None };
    pair.path.is_ident("path").then(|| path.value())
}

/// Files that a string names, as the tests do that compile files which must not compile: the folder
/// under which it may be meant, and the string.
fn quoted(source: &Source) -> Vec<(PathBuf, String)> {
    let literals = source.tokens.iter().filter_map(|token| match &token.is {
        Is::Literal(text) => Some(text.trim_matches('"')),
        _ => None,
    });
    let named = literals.filter(|text| text.ends_with(".rs") && text.contains('/'));
    let above = |folder: &str| source.path.iter().take_while(|part| *part != folder).collect::<PathBuf>();
    let package = if source.path.iter().any(|part| part == "tests") { above("tests") } else { above("src") };
    named.map(|text| (package.clone(), text.to_owned())).collect()
}

fn is_quoted(path: &Path, globs: &[(PathBuf, String)]) -> bool {
    globs.iter().any(|(package, glob)| {
        let Ok(inside) = path.strip_prefix(package) else { return false };
        let inside = inside.to_string_lossy();
        match glob.split_once('*') {
            Some((start, end)) => {
                let middle = inside.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
                middle.is_some_and(|middle| !middle.contains('/'))
            }
            None => inside == *glob,
        }
    })
}

/// A path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead_of(files: &[(&str, &str)], roots: &[&str]) -> Vec<String> {
        let sources: Vec<Source> =
            files.iter().map(|(path, text)| Source::parse(Path::new(path), text).unwrap()).collect();
        let roots: Vec<PathBuf> = roots.iter().map(PathBuf::from).collect();
        dead(&sources, &roots).into_iter().map(|finding| finding.path.display().to_string()).collect()
    }

    #[test]
    fn a_file_that_no_module_names_is_dead() {
        let files = [
            ("a/src/lib.rs", "mod b;\n#[cfg(feature = \"x\")]\nmod e { mod f; }\n"),
            ("a/src/b.rs", "mod c;\n#[path = \"../odd/g.rs\"]\nmod g;\n"),
            ("a/src/b/c.rs", ""),
            ("a/src/e/f.rs", ""),
            ("a/odd/g.rs", "include!(\"h.rs\");\n"),
            ("a/odd/h.rs", ""),
            ("a/src/c.rs", ""),
            ("a/src/d/mod.rs", ""),
        ];
        assert_eq!(dead_of(&files, &["a/src/lib.rs"]), ["a/src/c.rs", "a/src/d/mod.rs"]);
    }

    #[test]
    fn a_file_that_a_test_compiles_by_name_is_alive() {
        let files = [
            ("a/tests/compile.rs", "#[test]\nfn a() { t.compile_fail(\"tests/ui/*.rs\"); }\n"),
            ("a/tests/ui/wrong.rs", ""),
            ("a/tests/other/wrong.rs", ""),
        ];
        assert_eq!(dead_of(&files, &["a/tests/compile.rs"]), ["a/tests/other/wrong.rs"]);
    }
}
