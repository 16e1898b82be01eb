//! `GET /openapi.json`: what every route takes and gives, made from the code that does it. `GET /docs`: the same for people.
//!
//! What a route takes is read off the types that are parsed. What it gives is written as JSON where it is made, so `answers`
//! describes it once more; a test holds that description against real answers.

use std::sync::OnceLock;

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, ResponseBuilder};
use utoipa::{Modify, OpenApi as _};

use crate::answers::ErrorBody;
use crate::{
    chat_completions, completions, embeddings, evaluations, files, fine_tuning, generate, health,
    load_lora_adapter, lora_adapters, metrics, models, personas, studio, votes, with_sampling,
};

/// The name of the one way in.
const KEY: &str = "key";
/// Routes that want no key.
const OPEN: [&str; 6] = [
    "/health",
    "/ready",
    "/openapi.json",
    "/docs",
    "/",
    "/studio/{file}",
];
/// The page; it asks this server for the document and nobody for anything else.
const PAGE: &str = include_str!("docs.html");
/// Holds the page to that.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Lory",
        description = "Many tones of voice from one language model. Fields that are not described here are refused by name."
    ),
    paths(
        generate::generate,
        chat_completions::chat_completions,
        completions::completions,
        embeddings::embeddings,
        models::models,
        lora_adapters::lora_adapters,
        metrics::metrics,
        health::health,
        health::ready,
        personas::look::list,
        personas::look::show,
        personas::look::history,
        personas::look::versions,
        personas::publish::publish,
        personas::change::rollback,
        personas::change::remove,
        personas::change::canary,
        personas::change::end_canary,
        personas::change::shadow,
        personas::change::end_shadow,
        personas::change::alias,
        personas::change::remove_alias,
        personas::upload::upload,
        personas::upload::forget,
        personas::tend::verify,
        personas::tend::collect_garbage,
        files::create,
        files::list,
        files::retrieve,
        files::content,
        files::delete,
        files::lint,
        files::rows,
        fine_tuning::create,
        fine_tuning::plan,
        fine_tuning::list,
        fine_tuning::retrieve,
        fine_tuning::cancel,
        fine_tuning::pause,
        fine_tuning::resume,
        fine_tuning::publish,
        fine_tuning::events,
        fine_tuning::checkpoints,
        fine_tuning::samples,
        evaluations::list,
        evaluations::create,
        evaluations::retrieve,
        evaluations::cancel,
        votes::vote,
        votes::votes,
        load_lora_adapter::load,
        load_lora_adapter::unload,
        document,
        docs,
        studio::routes::page,
        studio::routes::file,
    ),
    components(schemas(ErrorBody)),
    modifiers(&Everywhere)
)]
struct Document;

/// What holds for every route: the shape of errors, and the key.
struct Everywhere;

impl Modify for Everywhere {
    fn modify(&self, document: &mut OpenApi) {
        with_sampling::describe(document);
        let error = ResponseBuilder::new()
            .description("Every error, in one shape")
            .content(
                "application/json",
                ContentBuilder::new()
                    .schema(Some(Ref::from_schema_name("ErrorBody")))
                    .build(),
            )
            .build();
        for (path, item) in &mut document.paths.paths {
            let operations: [&mut Option<Operation>; 5] = [
                &mut item.get,
                &mut item.post,
                &mut item.put,
                &mut item.patch,
                &mut item.delete,
            ];
            for operation in operations.into_iter().flatten() {
                let responses = &mut operation.responses.responses;
                responses.insert("default".to_owned(), error.clone().into());
                if !OPEN.contains(&path.as_str()) {
                    let key = SecurityRequirement::new::<_, [&str; 0], &str>(KEY, []);
                    operation.security = Some(vec![key]);
                }
            }
        }
        let mut bearer = Http::new(HttpAuthScheme::Bearer);
        bearer.description = Some("An API key. A server without keys wants none.".to_owned());
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(KEY, SecurityScheme::Http(bearer));
    }
}

/// The whole document.
pub(super) fn whole() -> OpenApi {
    Document::openapi()
}

/// This document
#[utoipa::path(
    get,
    path = "/openapi.json",
    responses((status = 200, description = "An OpenAPI document", body = serde_json::Value))
)]
pub(super) async fn document() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| serde_json::to_string(&whole()).unwrap_or_default());
    ([(CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}

/// A page that shows this document
#[utoipa::path(
    get,
    path = "/docs",
    responses((status = 200, description = "A page", body = String, content_type = "text/html"))
)]
pub(super) async fn docs() -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// `(method, path)` of every `.route(` in the sources of this folder.
    fn routes() -> BTreeSet<(String, String)> {
        let mut routes = BTreeSet::new();
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                if path.extension().is_none_or(|extension| extension != "rs") {
                    continue;
                }
                let text: String = std::fs::read_to_string(&path)
                    .unwrap()
                    .split_whitespace()
                    .collect();
                for route in text.split(".route(\"").skip(1) {
                    let Some((path, rest)) = route.split_once("\",") else {
                        continue;
                    };
                    let methods = rest.split(".route").next().unwrap();
                    for method in ["get", "post", "put", "patch", "delete"] {
                        let (first, further) = (format!("{method}("), format!(".{method}("));
                        if methods.starts_with(&first) || methods.contains(&further) {
                            routes.insert((method.to_owned(), path.to_owned()));
                        }
                    }
                }
            }
        }
        routes
    }

    #[test]
    fn every_route_is_in_the_document_and_nothing_else_is() {
        let document = serde_json::to_value(whole()).unwrap();
        let described: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().unwrap().keys();
                methods
                    .map(|method| (method.clone(), path.clone()))
                    .collect::<Vec<_>>()
            })
            .collect();
        let routes = routes();
        assert!(routes.len() > 8, "{routes:?}");
        assert_eq!(described, routes);
    }

    #[test]
    fn every_operation_says_what_it_does_and_how_it_fails() {
        let document = serde_json::to_value(whole()).unwrap();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let place = format!("{method} {path}");
                assert!(
                    operation["summary"]
                        .as_str()
                        .is_some_and(|text| !text.is_empty()),
                    "{place}"
                );
                let error =
                    &operation["responses"]["default"]["content"]["application/json"]["schema"];
                assert_eq!(error["$ref"], "#/components/schemas/ErrorBody", "{place}");
                let open = OPEN.contains(&path.as_str());
                assert_eq!(operation.get("security").is_none(), open, "{place}");
            }
        }
        // Every reference leads somewhere.
        let text = document.to_string();
        for name in text.split("\"#/components/schemas/").skip(1) {
            let name = name.split('"').next().unwrap();
            assert!(
                document["components"]["schemas"].get(name).is_some(),
                "{name}"
            );
        }
    }
}
