//! The HTTP interface.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::Error;
use crate::host::TenantHost;
use crate::resources::{Account, Opportunity, Resource, User};
use crate::tenants::Tenants;
use crate::work::{Create, Delete, List, Read, Usage};

/// The largest body of a request, in bytes.
const BODY_LIMIT: usize = 64 * 1024;
/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How many rows a list has unless told, and at most.
const PAGE: (i64, i64) = (100, 1000);

type App = State<Arc<Tenants>>;

/// The CRM, serving these tenants.
pub fn router(tenants: Arc<Tenants>) -> Router {
    Router::new()
        .route("/", get(home))
        .route("/healthz", get(|| async { "ok\n" }))
        .merge(resource::<User>())
        .merge(resource::<Account>())
        .merge(resource::<Opportunity>())
        .fallback(|request: Request| async move { Error::NotFound(request.uri().path().to_owned()) })
        .method_not_allowed_fallback(|| async {
            Error::BadRequest(StatusCode::METHOD_NOT_ALLOWED, "this path doesn't take that method".into())
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(from_fn(in_time))
        .with_state(tenants)
}

fn resource<R: Resource>() -> Router<Arc<Tenants>> {
    Router::new()
        .route(&format!("/{}", R::NAME), get(list::<R>).post(create::<R>))
        .route(&format!("/{}/{{id}}", R::NAME), get(read::<R>).delete(delete::<R>))
}

/// Ends what takes too long, whatever it waits for.
async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Error::TookTooLong.into_response(),
    }
}

/// Who am I, and how much have I used?
async fn home(State(tenants): App, host: TenantHost) -> Result<Json<Value>, Error> {
    let usage = tenants.transaction(&host, &Usage).await?;
    Ok(Json(json!({"host": host.as_str(), "usage": usage})))
}

async fn create<R: Resource>(
    State(tenants): App,
    host: TenantHost,
    body: Result<Json<R>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), Error> {
    let Json(new) = body?;
    let created = tenants.transaction(&host, &Create(new)).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

#[derive(Deserialize)]
struct Page {
    /// Only those with an id greater than this.
    #[serde(default)]
    after: i64,
    limit: Option<i64>,
}

async fn list<R: Resource>(
    State(tenants): App,
    host: TenantHost,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Vec<Value>>, Error> {
    let Query(Page { after, limit }) = page?;
    let limit = limit.unwrap_or(PAGE.0).clamp(1, PAGE.1);
    let list = List { after, limit, of: PhantomData::<R> };
    Ok(Json(tenants.transaction(&host, &list).await?))
}

async fn read<R: Resource>(
    State(tenants): App,
    host: TenantHost,
    id: Result<Path<i64>, PathRejection>,
) -> Result<Json<Value>, Error> {
    let Path(id) = id?;
    Ok(Json(tenants.transaction(&host, &Read(id, PhantomData::<R>)).await?))
}

async fn delete<R: Resource>(
    State(tenants): App,
    host: TenantHost,
    id: Result<Path<i64>, PathRejection>,
) -> Result<StatusCode, Error> {
    let Path(id) = id?;
    tenants.transaction(&host, &Delete(id, PhantomData::<R>)).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl From<JsonRejection> for Error {
    fn from(rejection: JsonRejection) -> Self {
        Self::BadRequest(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for Error {
    fn from(rejection: PathRejection) -> Self {
        Self::BadRequest(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Error {
    fn from(rejection: QueryRejection) -> Self {
        Self::BadRequest(rejection.status(), rejection.body_text())
    }
}
