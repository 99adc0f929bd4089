// The API's description, shown by Swagger UI.
"use strict";

SwaggerUIBundle({ url: "/openapi.json", domNode: document.getElementById("docs"), deepLinking: true, validatorUrl: null });
