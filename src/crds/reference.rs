//! The API reference: one table of fields for each resource, from the schemas alone.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion, JSONSchemaProps, JSONSchemaPropsOrArray,
    JSONSchemaPropsOrBool,
};

/// The API reference of these definitions, as Markdown.
pub fn reference(crds: &[CustomResourceDefinition]) -> String {
    let mut out = String::from(
        "# API reference\n\n\
         Written by `tenantry crds --reference` from the CustomResourceDefinitions; don't edit it, run `make crds`.\n\
         `[]` stands for an item of a list, `{}` for a value of a map.\n\
         What a field's rules say is the message that a violation gets.\n\n",
    );
    for crd in crds {
        let kind = &crd.spec.names.kind;
        let _ = writeln!(out, "- [{kind}](#{})", kind.to_lowercase());
    }
    for crd in crds {
        for version in &crd.spec.versions {
            resource(&mut out, crd, version);
        }
    }
    out
}

fn resource(out: &mut String, crd: &CustomResourceDefinition, version: &CustomResourceDefinitionVersion) {
    let names = &crd.spec.names;
    let Some(root) = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref()) else { return };
    let _ = write!(out, "\n## {}\n\n{}\n\n", names.kind, root.description.as_deref().unwrap_or_default());
    let _ = writeln!(out, "- `apiVersion: {}/{}`, `kind: {}`", crd.spec.group, version.name, names.kind);
    let _ = writeln!(out, "- Scope: {}", crd.spec.scope);
    let quoted = |names: &[String]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let _ = writeln!(
        out,
        "- For `kubectl get`: `{}`, short {}, in category {}",
        names.plural,
        quoted(names.short_names.as_deref().unwrap_or_default()),
        quoted(names.categories.as_deref().unwrap_or_default()),
    );
    let columns: Vec<_> = version
        .additional_printer_columns
        .iter()
        .flatten()
        .map(|column| match column.priority {
            Some(priority) if priority > 0 => format!("{} (`-o wide`)", column.name),
            _ => column.name.clone(),
        })
        .collect();
    let _ = writeln!(out, "- Columns: {}", columns.join(", "));
    let selectable: Vec<_> = version
        .selectable_fields
        .iter()
        .flatten()
        .map(|field| field.json_path.trim_start_matches('.').into())
        .collect();
    if !selectable.is_empty() {
        let _ = writeln!(out, "- Fields for `--field-selector`: {}", quoted(&selectable));
    }
    for message in messages(root) {
        let _ = writeln!(out, "- Rule: {message}");
    }
    for part in ["spec", "status"] {
        if let Some(schema) = root.properties.as_ref().and_then(|properties| properties.get(part)) {
            let _ = write!(out, "\n### {}: {part}\n\n", names.kind);
            for message in messages(schema) {
                let _ = writeln!(out, "- Rule: {message}");
            }
            if schema.x_kubernetes_validations.is_some() {
                out.push('\n');
            }
            out.push_str("| Field | Type | Description |\n|---|---|---|\n");
            fields(out, part, schema);
        }
    }
}

/// One row for each property below a schema, parents before children.
fn fields(out: &mut String, path: &str, schema: &JSONSchemaProps) {
    for (name, property) in schema.properties.iter().flatten() {
        let required = schema.required.iter().flatten().any(|required| required == name);
        row(out, &format!("{path}.{name}"), property, required);
    }
}

fn row(out: &mut String, path: &str, schema: &JSONSchemaProps, required: bool) {
    let mut facts = vec![type_name(schema)];
    if required {
        facts.push("required".to_owned());
    }
    facts.extend(bounds(schema));
    if let Some(default) = &schema.default {
        facts.push(format!("default `{}`", default.0));
    }
    let mut description = schema.description.clone().unwrap_or_default();
    for message in messages(schema) {
        let _ = write!(description, " Rule: {message}.");
    }
    let _ = writeln!(out, "| `{path}` | {} | {} |", cell(&facts.join(", ")), cell(&description));

    fields(out, path, schema);
    for (mark, inner) in [("[]", item(schema)), ("{}", value(schema))] {
        let Some(inner) = inner else { continue };
        let path = format!("{path}{mark}");
        // An item that has no bounds or rules of its own is told by its list's type.
        if !bounds(inner).is_empty() || messages(inner).next().is_some() {
            row(out, &path, inner, false);
        } else {
            fields(out, &path, inner);
        }
    }
}

fn item(schema: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match schema.items.as_ref()? {
        JSONSchemaPropsOrArray::Schema(inner) => Some(inner),
        JSONSchemaPropsOrArray::Schemas(_) => None,
    }
}

fn value(schema: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match schema.additional_properties.as_ref()? {
        JSONSchemaPropsOrBool::Schema(inner) => Some(inner),
        JSONSchemaPropsOrBool::Bool(_) => None,
    }
}

fn type_name(schema: &JSONSchemaProps) -> String {
    if schema.x_kubernetes_int_or_string == Some(true) {
        return "integer or string".to_owned();
    }
    if let Some(inner) = item(schema) {
        return format!("list of {}", type_name(inner));
    }
    if let Some(inner) = value(schema) {
        return format!("map of {}", type_name(inner));
    }
    match (schema.type_.as_deref(), schema.format.as_deref()) {
        (Some("string"), Some("date-time")) => "time".to_owned(),
        (Some(name), _) => name.to_owned(),
        (None, _) => "any".to_owned(),
    }
}

/// The bounds that the schema itself puts on a value.
fn bounds(schema: &JSONSchemaProps) -> Vec<String> {
    let mut bounds = Vec::new();
    if let Some(values) = &schema.enum_ {
        let values: Vec<_> = values.iter().map(|value| format!("`{}`", value.0.as_str().unwrap_or_default())).collect();
        bounds.push(format!("one of {}", values.join(" ")));
    }
    let mut range = |name: &str, least: Option<String>, most: Option<String>| match (least, most) {
        (Some(least), Some(most)) => bounds.push(format!("{least} to {most}{name}")),
        (Some(least), None) => bounds.push(format!("at least {least}{name}")),
        (None, Some(most)) => bounds.push(format!("at most {most}{name}")),
        (None, None) => {}
    };
    let text = |number: Option<i64>| number.map(|number| number.to_string());
    range("", schema.minimum.map(|number| number.to_string()), schema.maximum.map(|number| number.to_string()));
    range(" characters", text(schema.min_length), text(schema.max_length));
    range(" items", text(schema.min_items), text(schema.max_items));
    range(" entries", text(schema.min_properties), text(schema.max_properties));
    if let Some(pattern) = &schema.pattern {
        bounds.push(format!("matches `{pattern}`"));
    }
    match (schema.x_kubernetes_list_type.as_deref(), &schema.x_kubernetes_list_map_keys) {
        (Some("map"), Some(keys)) => bounds.push(format!("unique by `{}`", keys.join("`, `"))),
        (Some("set"), _) => bounds.push("no duplicates".to_owned()),
        _ => {}
    }
    bounds
}

/// The messages of a schema's CEL rules.
fn messages(schema: &JSONSchemaProps) -> impl Iterator<Item = &str> {
    schema.x_kubernetes_validations.iter().flatten().filter_map(|rule| rule.message.as_deref())
}

/// Text that fits into one cell of a Markdown table. Angle brackets would be HTML.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|").replace('<', "&lt;")
}
