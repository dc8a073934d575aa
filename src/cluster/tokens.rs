//! Whose token it is, and what its user may.

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, Resource, api::PostParams};

/// Asks the API server whose token this is, for an audience; nobody's where it doesn't know it, or
/// where it was issued for somebody else. Whoever is returned has a name.
///
/// # Errors
/// When the API server can't be asked.
pub async fn review_token(client: &Client, token: &str, audience: &str) -> kube::Result<Option<UserInfo>> {
    let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![audience.to_owned()]) };
    let review = TokenReview { spec, ..TokenReview::default() };
    let status = Api::<TokenReview>::all(client.clone()).create(&PostParams::default(), &review).await?.status;
    Ok(status.and_then(|status| {
        // An API server that knows no audiences answers without one: then any token would do.
        let meant = status.audiences.is_some_and(|audiences| audiences.iter().any(|one| one == audience));
        let known = status.authenticated == Some(true) && meant;
        status.user.filter(|user| known && user.username.is_some())
    }))
}

/// Asks the API server whether a user may `get` the cluster-scoped object of a kind with a name.
///
/// # Errors
/// When the API server can't be asked.
pub async fn may_get<K: Resource<DynamicType = ()>>(
    client: &Client,
    user: &UserInfo,
    name: &str,
) -> kube::Result<bool> {
    let attributes = ResourceAttributes {
        verb: Some("get".to_owned()),
        group: Some(K::group(&()).into_owned()),
        version: Some(K::version(&()).into_owned()),
        resource: Some(K::plural(&()).into_owned()),
        name: Some(name.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SubjectAccessReviewSpec {
        user: user.username.clone(),
        uid: user.uid.clone(),
        groups: user.groups.clone(),
        extra: user.extra.clone(),
        resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let reviews = Api::<SubjectAccessReview>::all(client.clone());
    let status = reviews.create(&PostParams::default(), &review).await?.status;
    Ok(status.is_some_and(|status| status.allowed && status.denied != Some(true)))
}
