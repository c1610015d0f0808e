/** Starts Swagger UI: in a file of its own, for the page's Content-Security-Policy allows nothing inline. */

// Without a validator, which would be asked over the network.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null });
