-- Runs once per tenant, as the tenant's owner: the search path is the tenant's own schema, so no name needs one.
CREATE TABLE users (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email      text NOT NULL UNIQUE CONSTRAINT email_is_an_address CHECK (email ~ '^[^@\s]+@[^@\s]+$' AND length(email) <= 254),
    name       text NOT NULL CONSTRAINT name_is_given CHECK (length(btrim(name)) BETWEEN 1 AND 200),
    created_at timestamptz NOT NULL DEFAULT now()
);
