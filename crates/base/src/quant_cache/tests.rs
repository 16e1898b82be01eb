use std::sync::Arc;

use formats::disk::faults::for_each_fault;
use formats::gguf::{GgmlType, Gguf, GgufWriter};
use model::Precision;

use super::*;

/// A GGUF file with two tensors; `t` is converted.
struct Tensors {
    path: PathBuf,
    gguf: Gguf,
    converted: Vec<(String, GgmlType, Vec<u64>)>,
}

impl Tensors {
    /// `values` fill `t`; its last byte is `last`.
    fn write(path: PathBuf, values: u8, last: u8) -> Tensors {
        let mut data = vec![values; 16 << 10];
        *data.last_mut().unwrap() = last;
        let mut writer = GgufWriter::new();
        let dims = [64, 64];
        writer.tensor("t", GgmlType::F32, &dims, data).unwrap();
        writer
            .tensor("norm", GgmlType::F32, &[1], vec![0; 4])
            .unwrap();
        fs::write(&path, writer.to_bytes().unwrap()).unwrap();
        Tensors::open(path)
    }

    fn open(path: PathBuf) -> Tensors {
        let bytes = fs::read(&path).unwrap();
        Tensors {
            path,
            gguf: Gguf::parse(Arc::new(bytes), "t").unwrap(),
            converted: vec![("t".to_owned(), GgmlType::Q8_0, vec![64, 64])],
        }
    }

    fn source(&self, precision: Precision) -> QuantSource<'_> {
        QuantSource {
            path: &self.path,
            checkpoint: &self.gguf,
            precision,
            tensors: &self.converted,
            release: &|_| (),
        }
    }

    fn store(&self, cache: &QuantCache, precision: Precision, values: u8) -> PathBuf {
        let source = self.source(precision);
        let writer = cache.begin(source).unwrap();
        writer.put("t", &[values; 4352]);
        writer.finish().unwrap();
        let name = file_name(&source.outline(), &source.content(3));
        let path = cache.folder.join(name);
        assert!(
            path.exists(),
            "the writer and the source must agree on the name"
        );
        path
    }

    fn found(&self, cache: &QuantCache, precision: Precision) -> Option<u8> {
        let files = cache.find(&self.source(precision), 2)?;
        Some(files.checkpoint().tensor("t").unwrap().data[0])
    }
}

fn cache_in(folder: &Path) -> QuantCache {
    QuantCache::in_folder(folder.join("cache"))
}

#[test]
fn moved_and_copied_bases_are_found_by_their_content() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let cache = cache_in(folder.path());
    let base = Tensors::write(at("a.gguf"), 1, 1);
    assert_eq!(base.found(&cache, Precision::Q8), None);
    base.store(&cache, Precision::Q8, 7);
    assert_eq!(base.found(&cache, Precision::Q8), Some(7));
    assert_eq!(base.found(&cache, Precision::Q4), None);

    fs::copy(at("a.gguf"), at("copy.gguf")).unwrap();
    let copy = Tensors::open(at("copy.gguf"));
    assert_eq!(copy.found(&cache, Precision::Q8), Some(7));
    fs::rename(at("a.gguf"), at("moved.gguf")).unwrap();
    let moved = Tensors::open(at("moved.gguf"));
    assert_eq!(moved.found(&cache, Precision::Q8), Some(7));

    // The same outline, but a tensor ends differently.
    let other = Tensors::write(at("other.gguf"), 1, 2);
    let outline = |base: &Tensors| base.source(Precision::Q8).outline();
    assert_eq!(outline(&other), outline(&base));
    assert_eq!(other.found(&cache, Precision::Q8), None);
    // The same path, length and modification time.
    let changed = fs::metadata(at("copy.gguf")).unwrap().modified().unwrap();
    let other = Tensors::write(at("copy.gguf"), 1, 2);
    let file = File::options().append(true).open(&other.path).unwrap();
    file.set_modified(changed).unwrap();
    assert_eq!(other.found(&cache, Precision::Q8), None);
}

#[test]
fn known_files_are_not_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_in(folder.path());
    let base = Tensors::write(folder.path().join("a.gguf"), 1, 1);
    base.store(&cache, Precision::Q8, 7);
    // The tensors do not exist, so neither outline nor content can be computed.
    let mut unread = base.source(Precision::Q8);
    let none = [("none".to_owned(), GgmlType::Q8_0, vec![64, 64])];
    unread.tensors = &none;
    assert!(cache.find(&unread, 1).is_some());
    // If the marker is broken, the outline is computed, and no file has it.
    for (path, _) in cache.files() {
        if path.extension().is_some_and(|e| e == KNOWN) {
            fs::write(&path, "../a.gguf").unwrap();
        }
    }
    assert!(cache.find(&unread, 1).is_none());
    // The base is found by its content, and a new marker is written.
    assert_eq!(base.found(&cache, Precision::Q8), Some(7));
    assert!(cache.find(&unread, 1).is_some());
}

#[test]
fn hash_of_a_base_is_remembered_until_its_files_change() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_in(folder.path());
    let base = folder.path().join("base");
    fs::create_dir(&base).unwrap();
    let weights = base.join("model.safetensors");
    fs::write(&weights, "one").unwrap();
    let first = cache.base_sha256(&base).unwrap();
    assert_eq!(first, sha256(&base).unwrap());
    let marker = || {
        let mut all = cache.files().map(|(path, _)| path);
        all.find(|path| path.extension().is_some_and(|e| e == SHA256))
    };
    // The marker is used unless it does not hold a hash or is too old.
    let other = "0".repeat(64);
    fs::write(marker().unwrap(), &other).unwrap();
    assert_eq!(cache.base_sha256(&base).unwrap(), other);
    fs::write(marker().unwrap(), "0").unwrap();
    assert_eq!(cache.base_sha256(&base).unwrap(), first);
    fs::write(marker().unwrap(), &other).unwrap();
    let file = File::options().append(true).open(marker().unwrap());
    let long_ago = SystemTime::now() - MAX_AGE - Duration::from_secs(60);
    file.unwrap().set_modified(long_ago).unwrap();
    assert_eq!(cache.base_sha256(&base).unwrap(), first);
    cache.sweep();
    assert!(marker().is_some());
    // The same length, but different content.
    fs::write(&weights, "two").unwrap();
    let second = cache.base_sha256(&base).unwrap();
    assert_eq!(second, sha256(&base).unwrap());
    assert_ne!(second, first);
    // A folder that cannot be written is not an error.
    let nowhere = QuantCache::in_folder(weights.join("cache"));
    assert_eq!(nowhere.base_sha256(&base).unwrap(), second);
}

#[test]
fn unfinished_files_are_removed_and_finish_reports_errors() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_in(folder.path());
    let base = Tensors::write(folder.path().join("a.gguf"), 1, 1);
    let begin = || cache.begin(base.source(Precision::Q8)).unwrap();
    drop(begin());
    let error = |writer: CacheWriter<'_>| writer.finish().unwrap_err().to_string();
    assert!(error(begin()).contains("t was never written"));
    let wrong = begin();
    wrong.put("u", &[0; 4352]);
    assert!(error(wrong).contains("announced"));
    assert_eq!(cache.list(), []);
    assert_eq!(fs::read_dir(&cache.folder).unwrap().count(), 0);
    assert_eq!(base.found(&cache, Precision::Q8), None);
}

#[test]
fn least_recently_used_file_is_removed_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut cache = cache_in(folder.path());
    let base = |i: u8| Tensors::write(folder.path().join(format!("{i}.gguf")), i, i);
    let bases = [base(1), base(2), base(3)];
    let old = bases[0].store(&cache, Precision::Q4, 1);
    let used = bases[1].store(&cache, Precision::Q4, 2);
    let past = |path: &Path, seconds: u64| {
        let at = SystemTime::now() - std::time::Duration::from_secs(seconds);
        let file = File::options().append(true).open(path).unwrap();
        file.set_modified(at).unwrap();
    };
    past(&used, 200);
    past(&old, 100);
    // Finding a file counts as using it.
    assert_eq!(bases[1].found(&cache, Precision::Q4), Some(2));
    let each = fs::metadata(&used).unwrap().len();
    cache.limit = 2 * each + each / 2;
    let new = bases[2].store(&cache, Precision::Q8, 3);
    let left: Vec<PathBuf> = cache.list().into_iter().map(|entry| entry.path).collect();
    assert_eq!(left, [used, new]);
    assert!(!old.exists());
    assert_eq!(cache.list()[1].precision.as_deref(), Some("q8"));
    // The marker of the removed file is removed the next time room is made.
    bases[2].store(&cache, Precision::Q8, 3);
    let markers = |(path, _): &(PathBuf, _)| path.extension().is_some_and(|e| e == KNOWN);
    assert_eq!(cache.files().filter(markers).count(), 2);
    cache.limit = 10;
    let error = cache.begin(bases[0].source(Precision::Q4));
    assert!(error.err().unwrap().to_string().contains("more than"));
}

#[test]
fn files_of_someone_else_are_never_removed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut cache = cache_in(folder.path());
    cache.limit = 20 << 10;
    fs::create_dir_all(&cache.folder).unwrap();
    let old = SystemTime::now() - 2 * marker::MAX_AGE;
    let foreign = [
        "my-model.gguf",
        "my-model.gguf.sha256",
        "list.known",
        "a-b.gguf",
    ];
    for name in foreign {
        let path = cache.folder.join(name);
        fs::write(&path, [0; 30 << 10]).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(old).unwrap();
    }
    let tensors = Tensors::write(at("a.gguf"), 1, 1);
    tensors.store(&cache, Precision::Q8, 1);
    cache.base_sha256(&tensors.path).unwrap();
    for name in foreign {
        assert!(cache.folder.join(name).exists(), "{name}");
    }
}

#[test]
fn cache_has_complete_files_only_after_every_fault() {
    let folder = tempfile::tempdir().unwrap();
    let base = Tensors::write(folder.path().join("base.gguf"), 1, 1);
    for_each_fault(|injection| {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache_in(folder.path());
        let source = base.source(Precision::Q8);
        let stored = injection.run(|| {
            let writer = cache.begin(source)?;
            writer.put("t", &[7; 4352]);
            writer.finish()
        });
        match base.found(&cache, Precision::Q8) {
            Some(found) => assert_eq!(found, 7, "{injection:?}"),
            None => assert!(stored.is_err(), "{injection:?}"),
        }
        base.store(&cache, Precision::Q8, 7);
        assert_eq!(base.found(&cache, Precision::Q8), Some(7));
        cache.sweep();
        let ours = cache.files().count();
        let all = fs::read_dir(&cache.folder).unwrap().count();
        assert_eq!(ours, all, "{injection:?}");
    });
}
