//! Serves the studio, the web page at `/`: HTML, CSS and JavaScript modules, embedded in the binary and sent to the browser as they are.
//! Must not know the service: the page uses the public API only.
//!
//! `index.html` and `main.js` are the frame; `playground.js`, `personas.js`, `train.js`, `evaluate.js` and `monitor.js` are the views;
//! `colors.css` has every colour. The first comment of each file says what it shows.

pub(crate) mod routes;

use std::sync::OnceLock;

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};

/// The content security policy: the page loads its own files and sends requests to this server only. Inline scripts and styles are not
/// allowed.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

/// An embedded file.
struct File {
    name: &'static str,
    content_type: &'static str,
    text: &'static str,
}

macro_rules! files {
    ($($name:literal $content_type:ident),* $(,)?) => {
        &[$(File { name: $name, content_type: $content_type, text: include_str!($name) }),*]
    };
}

/// All files; the first is the page itself.
static FILES: &[File] = files![
    "index.html" HTML,
    "colors.css" STYLE,
    "studio.css" STYLE,
    "icon.svg" PICTURE,
    "theme.js" SCRIPT,
    "main.js" SCRIPT,
    "playground.js" SCRIPT,
    "answer-card.js" SCRIPT,
    "blend.js" SCRIPT,
    "snippets.js" SCRIPT,
    "compare.js" SCRIPT,
    "personas.js" SCRIPT,
    "adapter-upload.js" SCRIPT,
    "zip.js" SCRIPT,
    "train.js" SCRIPT,
    "training-form.js" SCRIPT,
    "training-job.js" SCRIPT,
    "loss-chart.js" SCRIPT,
    "samples.js" SCRIPT,
    "review.js" SCRIPT,
    "evaluate.js" SCRIPT,
    "blind-vote.js" SCRIPT,
    "evaluation-run.js" SCRIPT,
    "evaluation-results.js" SCRIPT,
    "monitor.js" SCRIPT,
    "chart.js" SCRIPT,
    "metrics.js" SCRIPT,
    "api.js" SCRIPT,
    "dom.js" SCRIPT,
    "format.js" SCRIPT,
    "diff.js" SCRIPT,
    "example-prompts.js" SCRIPT,
];

impl File {
    /// The `ETag`: the first 8 bytes of the content's SHA-256, in hex.
    fn etag(&self) -> HeaderValue {
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

    /// The response with the file, or 304 if the request's `If-None-Match` has its `ETag`.
    fn response(&self, request: &HeaderMap) -> Response {
        let etag = self.etag();
        let cached = request.get_all(IF_NONE_MATCH).iter().any(|tags| {
            let mut tags = tags.to_str().unwrap_or_default().split(',');
            tags.any(|tag| tag.trim().as_bytes() == etag.as_bytes())
        });
        // The browser revalidates every file, so that an update never mixes old scripts with a new page.
        let headers = [
            (ETAG, etag),
            (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (CONTENT_TYPE, HeaderValue::from_static(self.content_type)),
            (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        ];
        match cached {
            true => (StatusCode::NOT_MODIFIED, headers).into_response(),
            false => (headers, self.text).into_response(),
        }
    }
}

/// The response for the page itself.
pub(crate) fn page(request: &HeaderMap) -> Response {
    FILES[0].response(request)
}

/// The response for the file `name`; `None` if there is no such file.
pub(crate) fn file(name: &str, request: &HeaderMap) -> Option<Response> {
    let file = FILES.iter().find(|file| file.name == name)?;
    Some(file.response(request))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_of_the_folder_is_served_and_every_import_exists() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/studio");
        let in_folder: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".rs"))
            .collect();
        let served: BTreeSet<String> = FILES.iter().map(|file| file.name.to_owned()).collect();
        assert_eq!(in_folder, served);
        for file in FILES {
            for name in file.text.split("from \"./").skip(1) {
                let name = name.split('"').next().unwrap();
                assert!(served.contains(name), "{} imports {name}", file.name);
            }
            for name in file.text.split("\"/studio/").skip(1) {
                let name = name.split('"').next().unwrap();
                assert!(served.contains(name), "{} refers to {name}", file.name);
            }
        }
    }

    #[test]
    fn no_file_loads_from_another_host_or_turns_text_into_markup() {
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
    fn colours_are_defined_in_one_file() {
        let sheet = FILES.iter().find(|file| file.name == "studio.css").unwrap();
        for notation in ["#", "rgb(", "hsl(", "oklch(", "light-dark("] {
            assert!(!sheet.text.contains(notation), "{notation}");
        }
    }

    #[test]
    fn an_unchanged_file_is_304() {
        let first = FILES[0].response(&HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        let mut request = HeaderMap::new();
        request.insert(IF_NONE_MATCH, first.headers()[ETAG].clone());
        assert_eq!(
            FILES[0].response(&request).status(),
            StatusCode::NOT_MODIFIED
        );
        assert_eq!(FILES[1].response(&request).status(), StatusCode::OK);
        let policy = first.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.contains("script-src 'self'") && !policy.contains("unsafe"));
    }
}
