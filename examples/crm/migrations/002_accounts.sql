CREATE TABLE accounts (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL CONSTRAINT name_is_given CHECK (length(btrim(name)) BETWEEN 1 AND 200),
    website    text CONSTRAINT website_is_short CHECK (length(website) <= 2000),
    created_at timestamptz NOT NULL DEFAULT now()
);
