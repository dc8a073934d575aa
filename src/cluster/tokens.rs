//! Whose token it is.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::{Api, Client, api::PostParams};

/// Asks the API server whose token this is, for an audience; nobody's where it doesn't know it, or
/// where it was issued for somebody else.
///
/// # Errors
/// When the API server can't be asked.
pub async fn review_token(client: &Client, token: &str, audience: &str) -> kube::Result<Option<String>> {
    let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![audience.to_owned()]) };
    let review = TokenReview { spec, ..TokenReview::default() };
    let status = Api::<TokenReview>::all(client.clone()).create(&PostParams::default(), &review).await?.status;
    Ok(status.and_then(|status| {
        // An API server that knows no audiences answers without one: then any token would do.
        let meant = status.audiences.is_some_and(|audiences| audiences.iter().any(|one| one == audience));
        let known = status.authenticated == Some(true) && meant;
        status.user.filter(|_| known).and_then(|user| user.username)
    }))
}
