//! The studio, a page at `/`: files that a browser takes as they are, held in the program. Knows no service: whatever the page does it
//! asks of the public API, and it asks nobody else.

use std::sync::OnceLock;

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};

/// Holds the page to its own files and to this server: no script, style or picture from elsewhere or from within a text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

/// A file of the page.
struct File {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

macro_rules! files {
    ($($name:literal $kind:ident),* $(,)?) => {
        &[$(File { name: $name, kind: $kind, text: include_str!($name) }),*]
    };
}

/// All of them; the first is the page itself.
static FILES: &[File] = files![
    "index.html" HTML,
    "studio.css" STYLE,
    "icon.svg" PICTURE,
    "theme.js" SCRIPT,
    "main.js" SCRIPT,
    "api.js" SCRIPT,
    "dom.js" SCRIPT,
    "format.js" SCRIPT,
    "diff.js" SCRIPT,
    "code.js" SCRIPT,
    "compare.js" SCRIPT,
    "trial.js" SCRIPT,
    "listen.js" SCRIPT,
    "personas.js" SCRIPT,
    "upload.js" SCRIPT,
    "zip.js" SCRIPT,
    "train.js" SCRIPT,
    "samples.js" SCRIPT,
    "evaluate.js" SCRIPT,
    "measure.js" SCRIPT,
    "watch.js" SCRIPT,
    "metrics.js" SCRIPT,
    "chart.js" SCRIPT,
];

impl File {
    /// Names this very content.
    fn tag(&self) -> HeaderValue {
        static TAGS: OnceLock<Vec<HeaderValue>> = OnceLock::new();
        let tags = TAGS.get_or_init(|| {
            let tag = |file: &File| {
                let hash = Sha256::digest(file.text);
                let hex = base16ct::lower::encode_string(&hash[..8]);
                HeaderValue::try_from(format!("\"{hex}\""))
            };
            FILES.iter().filter_map(|file| tag(file).ok()).collect()
        });
        let at = FILES.iter().position(|file| file.name == self.name);
        at.and_then(|at| tags.get(at).cloned())
            .unwrap_or_else(|| HeaderValue::from_static("\"\""))
    }

    /// The file, or that the browser has it already.
    fn answer(&self, asked: &HeaderMap) -> Response {
        let tag = self.tag();
        let known = asked.get_all(IF_NONE_MATCH).iter().any(|known| {
            let known = known.to_str().unwrap_or_default().split(',');
            known
                .map(str::trim)
                .any(|known| known.as_bytes() == tag.as_bytes())
        });
        // Asked again each time, so that after an update no old script meets a new page.
        let headers = [
            (ETAG, tag),
            (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (CONTENT_TYPE, HeaderValue::from_static(self.kind)),
            (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        ];
        match known {
            true => (StatusCode::NOT_MODIFIED, headers).into_response(),
            false => (headers, self.text).into_response(),
        }
    }
}

/// The page.
pub(crate) fn page(asked: &HeaderMap) -> Response {
    FILES[0].answer(asked)
}

/// The file of this name, if there is one.
pub(crate) fn file(name: &str, asked: &HeaderMap) -> Option<Response> {
    let file = FILES.iter().find(|file| file.name == name)?;
    Some(file.answer(asked))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_of_the_folder_is_served_and_every_import_leads_to_one() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/web");
        let there: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".rs"))
            .collect();
        let served: BTreeSet<String> = FILES.iter().map(|file| file.name.to_owned()).collect();
        assert_eq!(there, served);
        for file in FILES {
            for name in file.text.split("from \"./").skip(1) {
                let name = name.split('"').next().unwrap();
                assert!(served.contains(name), "{} imports {name}", file.name);
            }
            for name in file.text.split("\"/studio/").skip(1) {
                let name = name.split('"').next().unwrap();
                assert!(served.contains(name), "{} names {name}", file.name);
            }
        }
    }

    #[test]
    fn nothing_comes_from_elsewhere_or_is_made_markup() {
        for file in FILES {
            let text = file.text.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !text.contains("http://") && !text.contains("https://"),
                "{}",
                file.name
            );
            assert!(
                !text.contains("innerHTML") && !text.contains("insertAdjacentHTML"),
                "{}",
                file.name
            );
        }
    }

    #[test]
    fn a_browser_that_has_a_file_is_told_so() {
        let first = FILES[0].answer(&HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        let mut asked = HeaderMap::new();
        asked.insert(IF_NONE_MATCH, first.headers()[ETAG].clone());
        assert_eq!(FILES[0].answer(&asked).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(FILES[1].answer(&asked).status(), StatusCode::OK);
        let policy = first.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.contains("script-src 'self'") && !policy.contains("unsafe"));
    }
}
