//! The modules of a crate and what they use of each other, read from its sources with `syn`.
//!
//! Names are resolved as the compiler does, as far as that works without types: through `use`, re-exports and globs to the module
//! that defines the item. Method calls are not seen; the type that has the method usually is. Code under `#[cfg(test)]` is left out.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// A module's path from the crate root; empty for the root.
pub type ModulePath = Vec<String>;

/// A module uses an item of another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    pub from: ModulePath,
    /// The module that defines the item.
    pub to: ModulePath,
    /// `file:line`.
    pub at: String,
    /// The path as it is written.
    pub text: String,
    /// It is only passed on, by `pub use`.
    pub reexport: bool,
}

/// A function and its length.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function {
    pub lines: usize,
    pub name: String,
    pub at: String,
}

/// What is read from a crate.
#[derive(Debug, Default)]
pub struct Crate {
    modules: BTreeMap<ModulePath, Module>,
    pub uses: BTreeSet<Use>,
    pub functions: Vec<Function>,
    /// Every word of the sources, keywords included and tests too, with the first place in each file.
    pub words: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Default)]
struct Module {
    inline: bool,
    items: BTreeSet<String>,
    /// Names that `use` brings in, with the paths that they stand for.
    imports: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
    /// Paths in the module's code with the first place of each.
    paths: BTreeMap<Vec<String>, Place>,
    /// Names in the module's code that stand alone.
    names: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Place {
    at: String,
    reexport: bool,
}

impl Crate {
    /// Reads the crate in `folder`: `src/lib.rs`, `src/main.rs` or both.
    pub fn read(folder: &Path) -> Crate {
        let mut found = Crate::default();
        for root in ["lib.rs", "main.rs"] {
            let file = folder.join("src").join(root);
            if file.exists() {
                found.file(&file, Vec::new());
            }
        }
        found.resolve_all();
        found
    }

    fn file(&mut self, file: &Path, path: ModulePath) {
        let text = std::fs::read_to_string(file).unwrap();
        let syntax = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let mut reader = Reader {
            found: self,
            file,
            path,
        };
        let mut words = BTreeMap::new();
        words_of(text.parse().unwrap(), &mut words);
        for (word, line) in words {
            let at = reader.at(line);
            reader.found.words.entry(word).or_default().push(at);
        }
        for item in &syntax.items {
            reader.visit_item(item);
        }
    }

    /// The path without modules that are written within another one's file.
    pub fn file_of<'a>(&self, path: &'a [String]) -> &'a [String] {
        let inline = |at: &[String]| self.modules.get(at).is_some_and(|module| module.inline);
        let end = (1..=path.len()).find(|end| inline(&path[..*end]));
        end.map_or(path, |end| &path[..end - 1])
    }

    fn resolve_all(&mut self) {
        let mut uses = BTreeSet::new();
        for (from, module) in &self.modules {
            let mut add = |path: &[String], at: &str, reexport| {
                if let Some(to) = self.resolve(from, path, 0).filter(|to| to != from) {
                    uses.insert(Use {
                        from: from.clone(),
                        to,
                        at: at.to_owned(),
                        text: path.join("::"),
                        reexport,
                    });
                }
            };
            for (path, place) in &module.paths {
                add(path, &place.at, place.reexport);
            }
            for (name, at) in &module.names {
                // What is only imported is counted where it is imported; what is re-exported may be used here too.
                let import = module.imports.get(name);
                let passed_on = import.is_some_and(|path| module.paths[path].reexport);
                let from_glob =
                    import.is_none() && !module.items.contains(name) && !module.globs.is_empty();
                if passed_on || from_glob {
                    add(std::slice::from_ref(name), at, false);
                }
            }
        }
        self.uses = uses;
    }

    /// The module that defines what `path` names in the module `from`; none for what comes from elsewhere.
    fn resolve(&self, from: &[String], path: &[String], depth: usize) -> Option<ModulePath> {
        if depth > 16 {
            return None;
        }
        let mut at = from.to_vec();
        let mut rest = path;
        let mut anchored = false;
        while let Some((first, tail)) = rest.split_first() {
            match first.as_str() {
                "crate" => at = Vec::new(),
                "self" => {}
                "super" => drop(at.pop()),
                _ => break,
            }
            anchored = true;
            rest = tail;
        }
        loop {
            let Some((first, tail)) = rest.split_first() else {
                return anchored.then_some(at);
            };
            let module = self.modules.get(&at)?;
            let child: ModulePath = at.iter().chain([first]).cloned().collect();
            if self.modules.contains_key(&child) {
                (at, rest, anchored) = (child, tail, true);
                continue;
            }
            if module.items.contains(first) {
                return Some(at);
            }
            if let Some(target) = module.imports.get(first) {
                let target: Vec<String> = target.iter().chain(tail).cloned().collect();
                return self.resolve(&at, &target, depth + 1);
            }
            for glob in &module.globs {
                let target: Vec<String> = glob.iter().chain(rest).cloned().collect();
                if let Some(found) = self.resolve(&at, &target, depth + 1) {
                    return Some(found);
                }
            }
            return None;
        }
    }
}

/// Walks a file.
struct Reader<'a> {
    found: &'a mut Crate,
    file: &'a Path,
    path: ModulePath,
}

impl Reader<'_> {
    fn module(&mut self) -> &mut Module {
        self.found.modules.entry(self.path.clone()).or_default()
    }

    fn at(&self, line: usize) -> String {
        // From the crate's folder on.
        let parts: Vec<_> = self.file.iter().collect();
        let src = parts.iter().rposition(|part| *part == "src").unwrap();
        let file: PathBuf = parts[src - 1..].iter().collect();
        format!("{}:{line}", file.display())
    }

    fn path(&mut self, path: Vec<String>, line: usize, reexport: bool) {
        let at = self.at(line);
        let place = Place { at, reexport };
        match self.module().paths.entry(path) {
            Entry::Occupied(mut known) if known.get().reexport => drop(known.insert(place)),
            Entry::Occupied(_) => {}
            Entry::Vacant(free) => drop(free.insert(place)),
        }
    }

    /// A path outside of `use`.
    fn code_path(&mut self, mut path: Vec<String>, line: usize) {
        match path.len() {
            0 => {}
            1 => {
                let at = self.at(line);
                self.module().names.entry(path.remove(0)).or_insert(at);
            }
            _ => self.path(path, line, false),
        }
    }

    fn item_named(&mut self, name: &syn::Ident) {
        let name = name.to_string();
        self.module().items.insert(name);
    }

    fn import(
        &mut self,
        tree: &syn::UseTree,
        mut prefix: Vec<String>,
        line: usize,
        reexport: bool,
    ) {
        match tree {
            syn::UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.import(&path.tree, prefix, line, reexport);
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(tree, prefix.clone(), tree.span().start().line, reexport);
                }
            }
            syn::UseTree::Glob(_) => {
                self.module().globs.push(prefix.clone());
                self.path(prefix, line, reexport);
            }
            syn::UseTree::Name(syn::UseName { ident }) => {
                let ident = ident.to_string();
                let name = match ident.as_str() {
                    "self" => prefix.last().cloned().unwrap_or_default(),
                    _ => {
                        prefix.push(ident.clone());
                        ident
                    }
                };
                self.bind(name, prefix, line, reexport);
            }
            syn::UseTree::Rename(rename) => {
                if rename.ident != "self" {
                    prefix.push(rename.ident.to_string());
                }
                self.bind(rename.rename.to_string(), prefix, line, reexport);
            }
        }
    }

    fn bind(&mut self, name: String, path: Vec<String>, line: usize, reexport: bool) {
        self.path(path.clone(), line, reexport);
        self.module().imports.insert(name, path);
    }

    /// Paths in tokens that `syn` does not parse: those of macros and attributes.
    fn tokens(&mut self, tokens: TokenStream, strings: bool) {
        let mut path: Vec<String> = Vec::new();
        let (mut line, mut colons) = (0, 0);
        let mut paths = Vec::new();
        for token in tokens {
            match &token {
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(ident) if colons == 2 && !path.is_empty() => {
                    path.push(ident.to_string());
                    colons = 0;
                    continue;
                }
                _ => {}
            }
            paths.push((std::mem::take(&mut path), line));
            colons = 0;
            match token {
                TokenTree::Ident(ident) => {
                    line = ident.span().start().line;
                    path.push(ident.to_string());
                }
                TokenTree::Group(group) => self.tokens(group.stream(), strings),
                TokenTree::Literal(literal) if strings => {
                    let text = literal.to_string();
                    let text = text.trim_matches('"');
                    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
                    if text.contains("::") && text.chars().all(is_path) {
                        let path = text.split("::").map(str::to_owned).collect();
                        paths.push((path, literal.span().start().line));
                    }
                }
                _ => {}
            }
        }
        paths.push((path, line));
        for (path, line) in paths {
            self.code_path(path, line);
        }
    }

    fn function(&mut self, name: &syn::Ident, whole: proc_macro2::Span) {
        let (start, end) = (name.span().start().line, whole.end().line);
        let function = Function {
            lines: end + 1 - start,
            name: name.to_string(),
            at: self.at(start),
        };
        self.found.functions.push(function);
    }
}

/// Whether the attributes leave the item to tests.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let path = attribute.path();
        let tokens = match &attribute.meta {
            syn::Meta::List(list) => list.tokens.to_string(),
            _ => String::new(),
        };
        let words: Vec<&str> = tokens.split(|c: char| !c.is_alphanumeric()).collect();
        path.is_ident("test")
            || path.is_ident("cfg")
                && words.contains(&"test")
                && !words.contains(&"not")
                && !words.contains(&"any")
    })
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(it) => &it.attrs,
        syn::Item::Enum(it) => &it.attrs,
        syn::Item::Fn(it) => &it.attrs,
        syn::Item::Impl(it) => &it.attrs,
        syn::Item::Macro(it) => &it.attrs,
        syn::Item::Mod(it) => &it.attrs,
        syn::Item::Static(it) => &it.attrs,
        syn::Item::Struct(it) => &it.attrs,
        syn::Item::Trait(it) => &it.attrs,
        syn::Item::Type(it) => &it.attrs,
        syn::Item::Use(it) => &it.attrs,
        _ => &[],
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if is_test(attributes(item)) {
            return;
        }
        match item {
            syn::Item::Const(it) => self.item_named(&it.ident),
            syn::Item::Enum(it) => self.item_named(&it.ident),
            syn::Item::Fn(it) => self.item_named(&it.sig.ident),
            syn::Item::Macro(it) => {
                if let Some(name) = &it.ident {
                    self.item_named(name);
                }
            }
            syn::Item::Static(it) => self.item_named(&it.ident),
            syn::Item::Struct(it) => self.item_named(&it.ident),
            syn::Item::Trait(it) => self.item_named(&it.ident),
            syn::Item::Type(it) => self.item_named(&it.ident),
            syn::Item::Union(it) => self.item_named(&it.ident),
            _ => {}
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let name = item.ident.to_string();
        self.path.push(name.clone());
        self.module().inline = item.content.is_some();
        if let Some((_, items)) = &item.content {
            for item in items {
                self.visit_item(item);
            }
        } else {
            let folder = self.file.parent().unwrap();
            let stem = self.file.file_stem().unwrap().to_str().unwrap();
            let folder = match stem {
                "lib" | "main" | "mod" => folder.to_owned(),
                _ => folder.join(stem),
            };
            let candidates = [
                folder.join(format!("{name}.rs")),
                folder.join(&name).join("mod.rs"),
            ];
            let file = candidates.iter().find(|file| file.exists());
            let file =
                file.unwrap_or_else(|| panic!("no file for mod {name} of {}", self.file.display()));
            self.found.file(file, self.path.clone());
        }
        self.path.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_test(&item.attrs) {
            // `::name` is another crate, whatever modules are called.
            let prefix = item.leading_colon.map(|_| "::".to_owned());
            let prefix = prefix.into_iter().collect();
            let reexport = !matches!(item.vis, syn::Visibility::Inherited);
            self.import(&item.tree, prefix, item.span().start().line, reexport);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig.ident, item.span());
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            self.function(&item.sig.ident, item.span());
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            let names = path
                .segments
                .iter()
                .map(|segment| segment.ident.to_string());
            self.code_path(names.collect(), path.span().start().line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        self.tokens(mac.tokens.clone(), false);
        visit::visit_macro(self, mac);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone(), true);
        }
    }
}

fn words_of(tokens: TokenStream, words: &mut BTreeMap<String, usize>) {
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => {
                let line = ident.span().start().line;
                words.entry(ident.to_string()).or_insert(line);
            }
            TokenTree::Group(group) => words_of(group.stream(), words),
            _ => {}
        }
    }
}
