//! `/v1/files`: training files, in OpenAI's shapes; and checks and previews of a file before anything is trained.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::multipart::MultipartError;
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;

use crate::app_state::AppState;
use crate::error::ApiError;
use crate::middleware::auth::ApiCaller;
use crate::path::Path;
use crate::query::Query;
use crate::work::Work;
use jobs::files::{MAX_FILE, PURPOSE};
use jobs::fine_tuning::preview::{MAX_SHOWN, RowOptions, ShownRow};
use jobs::{JobError, StoredFile, Viewer};
use service::Caller;

/// The largest form, in bytes: a file, and what is around it.
pub(crate) const MAX_FORM: usize = MAX_FILE as usize + (64 << 10);
/// The longest `purpose`, in bytes.
const MAX_FIELD: usize = 1 << 10;
/// The longest page of files; OpenAI's limit.
const MAX_FILES_PAGE: usize = 10_000;
/// The size of the pieces in which a file is sent, in bytes.
const CHUNK: usize = 64 << 10;

/// A file.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct FileObject {
    id: String,
    /// `file`.
    object: &'static str,
    bytes: u64,
    /// A Unix time.
    created_at: u64,
    filename: String,
    /// `fine-tune`.
    purpose: &'static str,
    /// `processed`: every line was checked when it was uploaded.
    status: &'static str,
    /// The number of rows. OpenAI does not have this field.
    rows: usize,
    /// Whether its rows have a chosen and a rejected answer, for the method `dpo`. OpenAI does not have this field.
    pairs: bool,
    /// What became of the fields of its rows. OpenAI does not have this field.
    fields: Fields,
    /// The name of the key that owns it. Only keys with admin rights see it. OpenAI does not have this field.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

/// Numbers of rows, by the name of a field.
#[derive(Serialize, utoipa::ToSchema)]
struct Fields {
    /// Marks and columns that change what is trained.
    honoured: BTreeMap<String, usize>,
    /// Rows that are left out, by the mark that says so; `rows` does not count them.
    skipped: BTreeMap<String, usize>,
    /// Columns and keys of messages that training does not use.
    dropped: BTreeMap<String, usize>,
}

impl FileObject {
    fn new(file: StoredFile, caller: &Caller) -> FileObject {
        FileObject {
            id: file.id,
            object: "file",
            bytes: file.bytes,
            created_at: file.created_at,
            filename: file.filename,
            purpose: PURPOSE,
            status: "processed",
            rows: file.rows,
            pairs: file.pairs,
            fields: Fields {
                honoured: file.fields.honoured,
                skipped: file.fields.skipped,
                dropped: file.fields.dropped,
            },
            owner: caller.shown_owner(file.owner),
        }
    }
}

/// Files, a page of them.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct FileList {
    /// `list`.
    object: &'static str,
    data: Vec<FileObject>,
    #[schema(required)]
    first_id: Option<String>,
    #[schema(required)]
    last_id: Option<String>,
    has_more: bool,
}

/// A file that was deleted.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Deleted {
    id: String,
    /// `file`.
    object: &'static str,
    deleted: bool,
}

/// A form with a file.
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "only the derived schema is used")]
pub(super) struct FileForm {
    /// Rows in JSON lines, a JSON list, CSV or TSV, plain or compressed with gzip or Zstandard; at most 256 MiB, also after decompression.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// `fine-tune`.
    purpose: String,
}

/// Rows as training sees them.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct RowList {
    /// `list`.
    object: &'static str,
    data: Vec<ShownRow>,
    /// The number of rows of the file.
    total: usize,
}

fn broken_form(error: &MultipartError) -> ApiError {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => JobError::FileTooLarge { limit: MAX_FILE }.into(),
        _ => ApiError::bad_request("invalid_body", error.body_text(), None),
    }
}

fn missing(field: &str) -> ApiError {
    ApiError::bad_request(
        "missing_field",
        format!("{field} is missing"),
        Some(field.to_owned()),
    )
}

/// Upload a file of rows
///
/// A multipart form. Every line is checked; a file with invalid lines is refused, and the error lists them.
#[utoipa::path(
    post,
    path = "/v1/files",
    request_body(content = FileForm, content_type = "multipart/form-data"),
    responses((status = 200, description = "The file", body = FileObject))
)]
pub(super) async fn create(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    request: Request,
) -> Result<Json<FileObject>, ApiError> {
    let jobs = state.jobs()?;
    let form = Multipart::from_request(request, &state).await;
    let mut form = form
        .map_err(|rejection| ApiError::bad_request("invalid_body", rejection.body_text(), None))?;
    let (mut taken, mut purpose) = (None, None);
    while let Some(mut field) = form.next_field().await.map_err(|e| broken_form(&e))? {
        match field.name().unwrap_or_default() {
            "file" if taken.is_none() => {
                let filename = field.file_name().unwrap_or("rows.jsonl").to_owned();
                let (of_jobs, caller) = (Arc::clone(&jobs), caller.clone());
                let start = move || of_jobs.start_upload(&filename, &caller);
                let mut upload = work.records(start).await??;
                while let Some(bytes) = field.chunk().await.map_err(|e| broken_form(&e))? {
                    // The disk may be slow; one piece after the other is written.
                    let write = move || upload.write(&bytes).map(|()| upload);
                    let written = tokio::task::spawn_blocking(write).await;
                    upload = written
                        .map_err(|_| ApiError::internal("the file could not be written"))??;
                }
                taken = Some(upload);
            }
            "purpose" if purpose.is_none() => {
                let mut text = Vec::new();
                while let Some(bytes) = field.chunk().await.map_err(|e| broken_form(&e))? {
                    text.extend_from_slice(&bytes);
                    if text.len() > MAX_FIELD {
                        let message = format!("purpose is longer than {MAX_FIELD} bytes");
                        return Err(ApiError::unsupported("purpose", message));
                    }
                }
                purpose = Some(String::from_utf8_lossy(&text).into_owned());
            }
            name @ ("file" | "purpose") => {
                let message = format!("{name} is given twice");
                let name = Some(name.to_owned());
                return Err(ApiError::bad_request("invalid_value", message, name));
            }
            name => {
                let name: String = name.chars().take(80).collect();
                let message = format!("unknown field {name:?}; a form has file and purpose");
                return Err(ApiError::bad_request("unknown_field", message, Some(name)));
            }
        }
    }
    let purpose = purpose.ok_or_else(|| missing("purpose"))?;
    if purpose != PURPOSE {
        let shown: String = purpose.chars().take(40).collect();
        let message = format!("purpose must be {PURPOSE:?}, not {shown:?}");
        return Err(ApiError::unsupported("purpose", message));
    }
    let upload = taken.ok_or_else(|| missing("file"))?;
    let kept = work.background(move |running| jobs.finish_upload(upload, running.cancelled()));
    let kept = kept.await??;
    Ok(Json(FileObject::new(kept, &caller)))
}

/// List files
#[utoipa::path(
    get,
    path = "/v1/files",
    params(
        ("purpose" = Option<String>, Query, description = "`fine-tune`, the only purpose"),
        ("limit" = Option<usize>, Query, description = "The most items, 1 to 10000"),
        ("order" = Option<String>, Query, description = "`desc`, the newest first, or `asc`"),
        ("after" = Option<String>, Query, description = "Only items after this id"),
    ),
    responses((status = 200, description = "Files", body = FileList))
)]
pub(super) async fn list(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    mut query: Query,
) -> Result<Json<FileList>, ApiError> {
    let jobs = state.jobs()?;
    let purpose = query.text("purpose")?;
    let page = query.page(MAX_FILES_PAGE, MAX_FILES_PAGE, true)?;
    query.end()?;
    let who = Viewer::of(&caller);
    let listed = work.records(move || jobs.list_files(&who, &page));
    let (files, has_more) = listed.await??;
    let none_of_it = purpose.is_some_and(|purpose| purpose != PURPOSE);
    let data: Vec<FileObject> = match none_of_it {
        true => Vec::new(),
        false => files
            .into_iter()
            .map(|file| FileObject::new(file, &caller))
            .collect(),
    };
    Ok(Json(FileList {
        object: "list",
        first_id: data.first().map(|file| file.id.clone()),
        last_id: data.last().map(|file| file.id.clone()),
        data,
        has_more: has_more && !none_of_it,
    }))
}

/// One file
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}",
    params(("file_id" = String, Path, description = "The file's id")),
    responses((status = 200, description = "The file", body = FileObject))
)]
pub(super) async fn retrieve(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
) -> Result<Json<FileObject>, ApiError> {
    let jobs = state.jobs()?;
    let who = Viewer::of(&caller);
    let file = work.records(move || jobs.file(&who, &id)).await??;
    Ok(Json(FileObject::new(file, &caller)))
}

/// A file's bytes
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}/content",
    params(("file_id" = String, Path, description = "The file's id")),
    responses((status = 200, description = "The bytes that were uploaded", body = String, content_type = "application/jsonl"))
)]
pub(super) async fn content(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let jobs = state.jobs()?;
    let opened = work.records(move || {
        let file = jobs.file(&Viewer::of(&caller), &id)?;
        let opened = formats::disk::open(&jobs.file_path(&file));
        let opened = opened.map_err(|_| ApiError::internal("the file cannot be read"))?;
        Ok::<_, ApiError>((file, opened))
    });
    let (file, opened) = opened.await??;
    // A file can be too large to hold in memory.
    let pieces = stream::unfold((Some(opened), work), |(file, work)| async move {
        let mut file = file?;
        let read = work.records(move || {
            let mut piece = vec![0; CHUNK];
            let count = file.read(&mut piece)?;
            piece.truncate(count);
            Ok((Bytes::from(piece), file))
        });
        let failed = |_| Err(std::io::Error::other("the file cannot be read now"));
        match read.await.unwrap_or_else(failed) {
            Ok((piece, _)) if piece.is_empty() => None,
            Ok((piece, file)) => Some((Ok(piece), (Some(file), work))),
            Err(error) => Some((Err(error), (None, work))),
        }
    });
    // Upload has rejected names that are unsafe in a header, except for letters outside ASCII.
    let name: String = file
        .filename
        .chars()
        .map(|c| if c.is_ascii() { c } else { '_' })
        .collect();
    let headers = [
        (CONTENT_TYPE, "application/jsonl".to_owned()),
        (
            CONTENT_DISPOSITION,
            format!("attachment; filename=\"{name}\""),
        ),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// Delete a file that no job uses
#[utoipa::path(
    delete,
    path = "/v1/files/{file_id}",
    params(("file_id" = String, Path, description = "The file's id")),
    responses((status = 200, description = "The file was deleted", body = Deleted))
)]
pub(super) async fn delete(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    let jobs = state.jobs()?;
    let gone = id.clone();
    work.records(move || jobs.delete_file(&Viewer::of(&caller), &gone))
        .await??;
    Ok(Json(Deleted {
        id,
        object: "file",
        deleted: true,
    }))
}

/// How rows are read, by the parameters of all routes that preview them.
fn reading(query: &mut Query, context: usize) -> Result<RowOptions, ApiError> {
    Ok(RowOptions {
        system_prompt: query.text("system_prompt")?,
        max_length: query.number("max_length", 2, context)?,
    })
}

/// Lint a file
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}/lint",
    params(
        ("file_id" = String, Path, description = "The file's id"),
        ("validation_file" = Option<String>, Query, description = "A file whose prompts must not be in this one"),
        ("system_prompt" = Option<String>, Query, description = "The system prompt of rows without one"),
        ("max_length" = Option<usize>, Query, description = "The most tokens of a row; by default 1024"),
    ),
    responses((status = 200, description = "As `lory data lint --json`: the findings by line, and the lengths", body = serde_json::Value))
)]
pub(super) async fn lint(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
    mut query: Query,
) -> Result<Response, ApiError> {
    let jobs = state.jobs()?;
    let against = query.text("validation_file")?;
    let reading = reading(&mut query, jobs.context_length())?;
    query.end()?;
    let report = work.background(move |running| {
        let who = Viewer::of(&caller);
        let file = jobs.file(&who, &id)?;
        let against = against.map(|id| jobs.file(&who, &id)).transpose()?;
        jobs.lint(&file, against.as_ref(), &reading, running.cancelled())
    });
    let report = report.await??;
    Ok(Json(report).into_response())
}

/// Rows as training sees them
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}/rows",
    params(
        ("file_id" = String, Path, description = "The file's id"),
        ("first" = Option<usize>, Query, description = "The number of the first row, from 1"),
        ("limit" = Option<usize>, Query, description = "The most rows, 1 to 100; by default 10"),
        ("system_prompt" = Option<String>, Query, description = "The system prompt of rows without one"),
        ("max_length" = Option<usize>, Query, description = "The most tokens of a row; by default 1024"),
    ),
    responses((status = 200, description = "The rows, with the parts that are trained", body = RowList))
)]
pub(super) async fn rows(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Path(id): Path<String>,
    mut query: Query,
) -> Result<Json<RowList>, ApiError> {
    let jobs = state.jobs()?;
    let first = query.number("first", 1, usize::MAX)?.unwrap_or(1);
    let limit = query.number("limit", 1, MAX_SHOWN)?.unwrap_or(10);
    let reading = reading(&mut query, jobs.context_length())?;
    query.end()?;
    let shown = work.background(move |running| {
        let file = jobs.file(&Viewer::of(&caller), &id)?;
        jobs.rows(&file, first, limit, &reading, running.cancelled())
    });
    let (data, total) = shown.await??;
    Ok(Json(RowList {
        object: "list",
        data,
        total,
    }))
}
